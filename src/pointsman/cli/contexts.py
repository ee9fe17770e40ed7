"""Named contexts: which control planes a person works with, in the user's own configuration folder.

A context is a folder of `pointsman up`, or an address and the path of a key file. Keys themselves are never stored here.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from pointsman.problems import CODES, Exit, Problem

FILE_NAME = "contexts.json"


@dataclass
class Contexts:
    """All contexts of this user, and the name of the one in use."""

    current: str | None = None
    entries: dict[str, dict[str, str]] = field(default_factory=dict)

    def get(self, name: str) -> Mapping[str, str]:
        """Return one context.

        Raises:
            Problem: unknown_context.
        """
        if name not in self.entries:
            known = ", ".join(sorted(self.entries)) or "none yet"
            raise Problem(
                "unknown_context",
                f"There is no context {name!r}.",
                hint=f"Known: {known}. {CODES['unknown_context'][1]}",
                next_command="pointsman context list",
                exit_code=Exit.NOT_FOUND,
            )
        return self.entries[name]


def _folder() -> Path:
    return Path(platformdirs.user_config_dir("pointsman", appauthor=False))


def memory_folder() -> Path:
    """Return the folder in which revisions that were seen are remembered."""
    return Path(platformdirs.user_state_dir("pointsman", appauthor=False)) / "revisions"


def read() -> Contexts:
    """Read this user's contexts; there may be none."""
    try:
        stored = json.loads((_folder() / FILE_NAME).read_bytes())
        return Contexts(stored.get("current"), dict(stored.get("contexts", {})))
    except (OSError, ValueError, AttributeError):
        return Contexts()


def write(stored: Contexts) -> None:
    """Keep this user's contexts, replacing the file whole."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = folder / f".{FILE_NAME}.{os.getpid()}"
    draft.write_text(json.dumps({"current": stored.current, "contexts": stored.entries}, indent=2) + "\n")
    with contextlib.suppress(OSError):
        draft.chmod(0o600)
    draft.replace(folder / FILE_NAME)
