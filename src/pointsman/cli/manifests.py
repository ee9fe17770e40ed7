"""The files that people write: YAML in, checked documents out, in the order in which they must be applied.

`apply`, `plan` and `diff` read through here. Only the part of YAML that means the same to everybody is accepted: no
aliases (a few lines of them unfold into gigabytes), no tags, no duplicate keys, no words that quietly become booleans or
numbers of another base. Everything is bounded and everything is read before anything is applied, so that a mistake in
the last file changes nothing. Whether a document makes sense is the control plane's business, but for one thing: a
secret's value never leaves this machine.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import yaml

from contracts.names import RESOURCE_NAME_PATTERN, SECRET_FORMS, SECRET_REFERENCE_PATTERN, SECRET_SCHEMES, matches
from pointsman.cli import kinds
from pointsman.cli.kinds import Kind
from pointsman.problems import CODES, Exit, Problem

if TYPE_CHECKING:
    from contracts.v2 import ConnectionDocument, PipelineDocument

Document = TypeVar("Document")
_NOBODY = "00000000-0000-0000-0000-000000000000"

DOCUMENT_BYTES_MAX = 1 << 20
FILE_BYTES_MAX = 16 << 20
DOCUMENTS_MAX = 1_000
DEPTH_MAX = 32
DIGITS_MAX = 18
SUFFIXES = (".yaml", ".yml", ".json")

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")
_SECRET_KEY = re.compile(r"(?i)(^|_|-)(password|passwd|passphrase|pwd|secret|token|api_?key|private_?key)$")
_CREDENTIALS_IN_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


@dataclass(frozen=True)
class Manifest:
    """One document: what it describes, as a JSON-like value, and where it stands."""

    kind: Kind
    name: str
    body: dict[str, Any]
    origin: str


def read(paths: Sequence[str]) -> list[Manifest]:
    """Read files, folders (their YAML and JSON files, not deeper) and `-` for standard input.

    Returns what they hold in the order to apply it: data planes, connections, pipelines; each as it was written.

    Raises:
        Problem: unreadable, too large, not accepted, or the same resource twice. Nothing was applied then.
    """
    found = [manifest for origin, text in _texts(paths) for manifest in _documents(origin, text)]
    seen: dict[tuple[str, str], str] = {}
    for manifest in found:
        key = (manifest.kind.name, manifest.name)
        if key in seen:
            raise _invalid(manifest.origin, f"{manifest.kind.singular} {manifest.name!r} stands in {seen[key]} as well")
        seen[key] = manifest.origin
    if not found:
        raise Problem("manifest_invalid", f"No document was found in {', '.join(paths)}.", hint="Check the path.")
    return sorted(found, key=lambda manifest: kinds.APPLIED_IN_ORDER.index(manifest.kind))


def _texts(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    for given in paths:
        if given == "-":
            yield "standard input", _decoded("standard input", sys.stdin.buffer.read(FILE_BYTES_MAX + 1))
            continue
        path = Path(given)
        files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES) if path.is_dir() else [path]
        for file in files:
            try:
                with file.open("rb") as stream:
                    raw = stream.read(FILE_BYTES_MAX + 1)
            except OSError as error:
                raise Problem(
                    "manifest_unreadable", f"{file}: {error.strerror}.", hint=CODES["manifest_unreadable"][1]
                ) from None
            yield str(file), _decoded(str(file), raw)


def _decoded(origin: str, raw: bytes) -> str:
    if len(raw) > FILE_BYTES_MAX:
        raise Problem(
            "manifest_too_large",
            f"{origin}: larger than {FILE_BYTES_MAX >> 20} MiB.",
            hint=CODES["manifest_too_large"][1],
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(origin, f"not UTF-8 at byte {error.start}") from None


def _documents(origin: str, text: str) -> Iterator[Manifest]:
    for number, (line, value) in enumerate(_parse(origin, text), start=1):
        if number > DOCUMENTS_MAX:
            raise _invalid(origin, f"more than {DOCUMENTS_MAX} documents in one file")
        # What `get -o yaml` prints of many is a list of documents in one.
        listed = value["items"] if isinstance(value, dict) and set(value) == {"items"} else [value]
        for each in listed if isinstance(listed, list) else [listed]:
            if each is not None:
                yield _manifest(f"{origin}:{line}", each)


def _manifest(origin: str, value: Any) -> Manifest:
    if not isinstance(value, dict):
        raise _invalid(origin, "a document must be a mapping with kind and name")
    kind_name, name = value.get("kind"), value.get("name")
    if not isinstance(kind_name, str) or not isinstance(name, str):
        raise _invalid(origin, "`kind` or `name` is missing, or is not text")
    try:
        kind = kinds.find(kind_name)
    except Problem as problem:
        raise Problem(problem.code, f"{origin}: {problem.message}", hint=problem.hint) from None
    if kind not in kinds.APPLIED_IN_ORDER:
        raise _invalid(origin, f"a {kind.singular} is not made from a file; see `pointsman create --help`")
    if not matches(RESOURCE_NAME_PATTERN, name):
        # Found before anything is sent: a name with a slash would address another resource.
        raise Problem(
            "invalid_name",
            f"{origin}: {name!r} is not a name.",
            hint="Lower-case letters, digits and hyphens; at most 63; a letter or digit first and last.",
        )
    _refuse_secrets(origin, value, ())
    return Manifest(kind, name, value, origin)


def _refuse_secrets(origin: str, value: Any, path: tuple[str, ...]) -> None:
    """Walk through a document and stop at anything that looks like a secret's value. The value is never quoted."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_secrets(origin, inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_secrets(origin, inner, (*path, str(number)))
    elif _is_secret(path, value):
        where = "/".join(path)
        raise Problem(
            "secret_in_plain_text",
            f"{origin}: {where} holds a value where a reference to a secret belongs.",
            hint=CODES["secret_in_plain_text"][1],
            details=(f"/{where}: write {SECRET_FORMS}",),
        )


def _is_secret(path: tuple[str, ...], value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return False
    named = "secrets" in path[-2:] or _SECRET_KEY.search(path[-1] if path else "") is not None
    if named:
        text = str(value)
        # A reference with a mistake in it is no secret: the control plane says what is wrong with it.
        return not (matches(SECRET_REFERENCE_PATTERN, text) or text.startswith(SECRET_SCHEMES))
    return isinstance(value, str) and _CREDENTIALS_IN_URL.search(value) is not None


# ---- YAML, event by event --------------------------------------------------------------------------------------------


@dataclass
class _Open:
    """A mapping or list that is being filled. A mapping waits for a key or for the value of `key`."""

    value: dict[str, Any] | list[Any]
    key: str | None = None


def _parse(origin: str, text: str) -> Iterator[tuple[int, Any]]:
    """Yield each document's first line and its value, built without recursion and bounded while it is read."""
    try:
        builder, line, begin = _Builder(origin), 1, 0
        events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        for event in events:
            end: Any = event.end_mark
            if isinstance(event, yaml.DocumentStartEvent):
                builder, line, begin = _Builder(origin), end.line + 1, end.index
            elif isinstance(event, yaml.DocumentEndEvent):
                yield line, builder.result
            elif isinstance(event, (yaml.StreamStartEvent, yaml.StreamEndEvent)):
                continue
            else:
                if end.index - begin > DOCUMENT_BYTES_MAX:
                    raise Problem(
                        "manifest_too_large",
                        f"{origin}:{line}: the document is larger than {DOCUMENT_BYTES_MAX >> 20} MiB.",
                        hint=CODES["manifest_too_large"][1],
                    )
                builder.take(event)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _invalid(f"{origin}:{line}", error.problem or "not YAML") from None
    except yaml.YAMLError:
        raise _invalid(origin, "a character that YAML does not allow") from None


class _Builder:
    """Builds one document's value from its events."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.result: Any = None
        self._open: list[_Open] = []

    def take(self, event: Any) -> None:
        """Add one event.

        Raises:
            Problem: it is something that is not accepted.
        """
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise self._refused(event, "anchors and aliases are not accepted")
        if getattr(event, "tag", None) is not None:
            raise self._refused(event, "tags are not accepted")
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._open.pop()
        elif isinstance(event, yaml.ScalarEvent):
            self._add(event, event.value if self._waits_for_key() else self._scalar(event))
        else:
            container: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            if self._waits_for_key():
                raise self._refused(event, "a key must be text")
            self._add(event, container)
            self._open.append(_Open(container))
            if len(self._open) > DEPTH_MAX:
                raise self._refused(event, f"nested deeper than {DEPTH_MAX}")

    def _waits_for_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].value, dict) and self._open[-1].key is None

    def _add(self, event: Any, value: Any) -> None:
        if not self._open:
            self.result = value
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            if value in top.value:
                raise self._refused(event, f"the key {value!r} stands there twice")
            top.key = value
        else:
            top.value[top.key] = value
            top.key = None

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.style:
            return text
        if text in ("", "~", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        if _INTEGER.fullmatch(text):
            if len(text) > DIGITS_MAX:
                raise self._refused(event, f"a number of more than {DIGITS_MAX} digits")
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def _refused(self, event: Any, why: str) -> Problem:
        return _invalid(f"{self.origin}:{event.start_mark.line + 1}", why)


def _invalid(origin: str, why: str) -> Problem:
    return Problem("manifest_invalid", f"{origin}: {why}.", hint=CODES["manifest_invalid"][1], exit_code=Exit.ERROR)


# ---- As documents ----------------------------------------------------------------------------------------------------


def to_pipeline(manifest: Manifest) -> "PipelineDocument":
    """Return the document that a pipeline's manifest becomes, of no tenant and in its first generation.

    Raises:
        Problem: manifest_invalid. A field that is not known is passed over.
    """
    from contracts.v2 import PipelineDocument

    written = {name: each for name, each in manifest.body.items() if name != "signature"}
    return _converted(manifest, PipelineDocument, {**written, "run": "running", "kind": "pipeline"})


def to_connection(manifest: Manifest) -> "ConnectionDocument":
    """Return the document that a connection's manifest becomes, of no tenant and in its first generation.

    Raises:
        Problem: manifest_invalid. A field that is not known is passed over.
    """
    from contracts.v2 import ConnectionDocument

    written = {name: each for name, each in manifest.body.items() if name != "signature"}
    config = manifest.body.get("config", {})
    config = {**config, "type": manifest.body.get("type")} if isinstance(config, dict) else config
    return _converted(manifest, ConnectionDocument, {**written, "config": config, "kind": "connection"})


def _converted(manifest: Manifest, form: type[Document], fields: dict[str, Any]) -> Document:
    address = {"tenant": _NOBODY, "name": manifest.name, "epoch": 1, "generation": 1}
    try:
        return msgspec.convert({"data_plane": "local", **fields, **address}, form)
    except msgspec.ValidationError as error:
        raise _invalid(manifest.origin, str(error)) from None
