"""Which control plane a command speaks to: a folder of `pointsman up`, an address with a key, or a named context.

Flags win over variables, variables over the context in use. Flags may stand before the verb or after it. The newest
revision that was seen is remembered between commands, so that a `get` after an `apply` shows what was applied.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from pointsman.cli import contexts
from pointsman.client import ATTEMPTS_MAX, TIMEOUT_SECONDS, Client
from pointsman.problems import CODES, Exit, Problem

STATE_FILE = "pointsman.json"
KEY_BYTES_MAX = 4_096

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass(frozen=True)
class Target:
    """What was given on the command line, still unread: files are opened when a client is asked for."""

    folder: str | None = None
    api: str | None = None
    key_file: str | None = None
    context: str | None = None

    def over(self, other: "Target") -> "Target":
        """Return this target, with what it leaves open taken from `other` when it names nothing itself."""
        if self.api or self.folder or self.context:
            return self
        return replace(other, key_file=self.key_file or other.key_file)

    def resolved(self) -> "Target":
        """Return a target with either a folder, or an address and perhaps a key file.

        Raises:
            Problem: no_target, unknown_context, or a usage error for two targets at once.
        """
        if sum(1 for value in (self.folder, self.api, self.context) if value) > 1:
            raise click.UsageError("Give one of --dir, --api and --context.")
        if self.api:
            return replace(self, key_file=self.key_file or os.environ.get("POINTSMAN_KEY_FILE"))
        if self.folder:
            return self
        api, folder = os.environ.get("POINTSMAN_API"), os.environ.get("POINTSMAN_DIR")
        if not self.context and (api or folder):
            return replace(self, api=api, folder=None if api else folder).resolved()
        return self._stored()

    def _stored(self) -> "Target":
        stored = contexts.read()
        name = self.context or os.environ.get("POINTSMAN_CONTEXT") or stored.current
        if name is None:
            raise Problem(
                "no_target",
                "No control plane was named.",
                hint=CODES["no_target"][1],
                next_command="pointsman up --dir DIR",
                exit_code=Exit.USAGE,
            )
        entry = stored.get(name)
        return Target(entry.get("dir"), entry.get("api"), self.key_file or entry.get("key_file"))

    def folder_path(self) -> Path:
        """Return the folder of `pointsman up` that was named.

        Raises:
            click.UsageError: something else was named, or nothing.
        """
        folder = self.resolved().folder
        if folder is None:
            raise click.UsageError("This command needs --dir or POINTSMAN_DIR.")
        return Path(folder)

    @contextlib.contextmanager
    def client(
        self,
        *,
        operator: bool = False,
        grant: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> Iterator[Client]:
        """Open a client with the tenant's key, or with the operator's, and remember the newest revision afterwards.

        `grant` is `TENANT/NAME` of an access grant under which the operator reads.
        """
        found = self.resolved()
        if found.folder is not None:
            state = read_state(Path(found.folder))
            url = str(state["api"]["url"])
            key_file = found.key_file or str(state["operator_key_file" if operator else "api_key_file"])
            memory = Path(found.folder) / "run" / ("operator-revision" if operator else "revision")
        else:
            assert found.api is not None
            if found.key_file is None:
                raise Problem(
                    "no_target",
                    "--api needs --key-file: the path of a file that holds an API key.",
                    exit_code=Exit.USAGE,
                )
            url, key_file = found.api, found.key_file
            memory = contexts.memory_folder() / hashlib.sha256(f"{url} {key_file}".encode()).hexdigest()[:16]
        key, known = read_key(Path(key_file)), _recall(memory)
        options = {"timeout_seconds": timeout_seconds, "attempts_max": attempts_max}
        with Client(url, key, at_least=known, grant=grant, **options) as client:  # type: ignore[arg-type]
            try:
                yield client
            finally:
                _remember(memory, client.revision)


def read_state(folder: Path) -> Mapping[str, Any]:
    """Read `pointsman.json` in `folder`.

    Raises:
        Problem: not_running when the file is not there or is not ours.
    """
    try:
        state = json.loads((folder / STATE_FILE).read_bytes())
        return state if isinstance(state, dict) and "api" in state else _not_running(folder)
    except (OSError, ValueError):
        return _not_running(folder)


def _not_running(folder: Path) -> Mapping[str, Any]:
    raise Problem(
        "not_running",
        f"Nothing runs in {folder}: there is no {STATE_FILE}.",
        hint=CODES["not_running"][1],
        next_command=f"pointsman up --dir {folder}",
        exit_code=Exit.NOT_FOUND,
    )


def read_key(path: Path) -> str:
    """Read an API key from its file.

    Raises:
        Problem: key_file_unreadable. The text never quotes what the file holds.
    """
    try:
        key = path.read_bytes()[:KEY_BYTES_MAX].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a key"
        raise Problem(
            "key_file_unreadable", f"{path}: {why}.", hint=CODES["key_file_unreadable"][1], exit_code=Exit.NOT_ALLOWED
        ) from None
    if not key or not key.isprintable() or " " in key:
        raise Problem("key_file_unreadable", f"{path}: not a key.", exit_code=Exit.NOT_ALLOWED)
    return key


def _recall(memory: Path) -> int | None:
    try:
        return int(memory.read_text())
    except (OSError, ValueError):
        return None


def _remember(memory: Path, revision: int | None) -> None:
    # Only a convenience: a folder that cannot be written costs freshness of the next read, nothing else.
    with contextlib.suppress(OSError):
        if revision is None:
            memory.unlink(missing_ok=True)
        elif revision != _recall(memory):
            memory.parent.mkdir(parents=True, exist_ok=True)
            draft = memory.with_name(f".{memory.name}.{os.getpid()}")
            draft.write_text(str(revision))
            draft.replace(memory)


def _declared(function: Decorated) -> Decorated:
    for option in (
        click.option("--context", "context", metavar="NAME", help="A named context; see `pointsman context list`."),
        click.option("--key-file", "key_file", metavar="FILE", help="File that holds the API key, for --api."),
        click.option("--api", "api", metavar="URL", help="Address of a control plane."),
        click.option("--dir", "folder", metavar="DIR", help="Folder of `pointsman up` [POINTSMAN_DIR]."),
    ):
        function = option(function)
    return function


def target_options(function: Decorated) -> Decorated:
    """Give a command --dir, --api, --key-file and --context, and pass what they say as `target`."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        own = Target(named.pop("folder"), named.pop("api"), named.pop("key_file"), named.pop("context"))
        outer = click.get_current_context().find_object(Target) or Target()
        return function(*arguments, target=own.over(outer), **named)

    return cast(Decorated, _declared(wrapped))


def folder_option(function: Decorated) -> Decorated:
    """Give a command --dir alone, passed as `folder`: for what acts on this machine."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        outer = click.get_current_context().find_object(Target) or Target()
        own = Target(folder=named.pop("folder")).over(outer)
        return function(*arguments, folder=own.folder_path(), **named)

    option = click.option("--dir", "folder", metavar="DIR", help="Folder of `pointsman up` [POINTSMAN_DIR].")
    return cast(Decorated, option(wrapped))


def root_options(function: Decorated) -> Decorated:
    """Give the root group the same options, for people who write them before the verb."""
    return _declared(function)
