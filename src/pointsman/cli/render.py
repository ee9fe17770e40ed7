"""The one renderer: every command that prints data prints it through here, as a table, as JSON or as YAML.

Data goes to standard output; messages go to standard error through `say`. JSON and YAML carry the data as it is; tables
are for people. Whatever comes from outside, a name, a host, an error's text, could hold control characters that steer a
terminal: they are made visible before they are printed, in every format. Without a terminal, or with NO_COLOR or
TERM=dumb, there is no colour and nothing is cut to a width.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

Format = Literal["table", "json", "yaml"]
FORMATS: tuple[Format, ...] = ("table", "json", "yaml")

# C0 and C1 controls, DEL, line and paragraph separators, marks that turn the direction of text, lone surrogates.
_DANGEROUS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_WIDTH_UNBOUNDED = 100_000

_GOOD = {"streaming", "running", "ready", "yes", "created", "configured", "adopted", "ok"}
_BAD = {"degraded", "gap", "failed", "error", "no"}
_WAITING = {"pending", "snapshotting", "retrying", "starting", "restarting", "unscheduled", "stopping"}


@dataclass(frozen=True)
class Column:
    """A column: its heading, and the dotted path of its field or a function that reads it."""

    heading: str
    source: str | Callable[[Mapping[str, Any]], str]
    right: bool = False
    traffic_light: bool = False

    def read(self, item: Mapping[str, Any]) -> str:
        """Return the cell's text for `item`: `-` when there is nothing."""
        value = self.source(item) if callable(self.source) else field(item, self.source)
        if value is None or value == "":
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        return visible(str(value))


def field(item: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, or None when any step of it is missing."""
    value: Any = item
    for step in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(step)
    return value


def visible(text: str) -> str:
    r"""Return `text` with each character that could steer a terminal written as an escape, such as `\x1b`."""
    return _DANGEROUS.sub(lambda match: _escaped(ord(match[0])), text)


def _escaped(code: int) -> str:
    named = {9: "\\t", 10: "\\n", 13: "\\r"}
    return named.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def as_json(data: Any) -> str:
    """Return `data` as indented JSON that holds no character which could steer a terminal."""
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str)
    safe = _DANGEROUS.search(text.replace("\n", "")) is None
    return text if safe else json.dumps(data, indent=2, ensure_ascii=True, default=str)


def as_yaml(data: Any) -> str:
    """Return `data` as YAML that holds no character which could steer a terminal; a list becomes one document."""
    import yaml

    def dump(*, unicode: bool) -> str:
        text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=unicode, default_flow_style=False, width=4096)
        return text.removesuffix("...\n")

    plain = json.loads(json.dumps(data, default=str))
    text = dump(unicode=True)
    return text if _DANGEROUS.search(text.replace("\n", "")) is None else dump(unicode=False)


def age(seconds: float) -> str:
    """Return a duration as people say it: `12s`, `5m`, `3h`, `4d`."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def size(count: float) -> str:
    """Return a number of bytes as people say it: `0 B`, `12.3 kB`, `4.5 MB`."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{int(count)} B"


def is_plain(stream: TextIO) -> bool:
    """Say whether `stream` takes text alone: no terminal, or one that asked for no colour and no movement."""
    return not stream.isatty() or os.environ.get("TERM") == "dumb"


def console(stream: TextIO | None = None) -> Console:
    """Return a console on `stream` (standard output) that keeps quiet about colour where none is wanted."""
    target = sys.stdout if stream is None else stream
    plain = is_plain(target)
    return Console(
        file=target,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
        force_terminal=False if plain else None,
        width=_WIDTH_UNBOUNDED if plain else None,
        legacy_windows=False,
    )


def light(text: str) -> Text:
    """Return a state's word in its colour."""
    word = text.lower()
    style = "green" if word in _GOOD else "bold red" if word in _BAD else "yellow" if word in _WAITING else ""
    return Text(text, style=style)


def table(items: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> Table:
    """Return a table without lines, as kubectl's, of `items`."""
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", collapse_padding=True)
    for column in columns:
        grid.add_column(column.heading, justify="right" if column.right else "left", overflow="fold")
    for item in items:
        cells = ((column, column.read(item)) for column in columns)
        grid.add_row(*(light(cell) if column.traffic_light else Text(cell) for column, cell in cells))
    return grid


def print_items(
    items: Sequence[Mapping[str, Any]], columns: Sequence[Column], output: Format, *, empty: str = "Nothing found."
) -> None:
    """Print a list: a table, or `items` as they are. An empty table prints nothing; the message says why."""
    if output == "json":
        write(as_json({"items": list(items)}))
    elif output == "yaml":
        write(as_yaml({"items": list(items)}))
    elif not items:
        say(empty)
    else:
        show(table(items, columns))


def print_one(item: Mapping[str, Any], output: Format, *, text: Callable[[Mapping[str, Any]], Any]) -> None:
    """Print one thing: as it is, or what `text` makes of it (a string or anything that rich prints)."""
    if output == "json":
        write(as_json(item))
    elif output == "yaml":
        write(as_yaml(item))
    else:
        shown = text(item)
        if isinstance(shown, str):
            write(shown)
        else:
            show(shown)


def show(renderable: Any) -> None:
    """Print a table or another thing of rich's to standard output, without the blanks at the ends of lines."""
    target = console()
    with target.capture() as captured:
        target.print(renderable)
    write("\n".join(_without_trailing_blanks(line) for line in captured.get().rstrip("\n").split("\n")))


_TRAILING = re.compile(r"[ ]+((?:\x1b\[[0-9;]*m)*)$")


def _without_trailing_blanks(line: str) -> str:
    return _TRAILING.sub(r"\1", line)


def write(text: str) -> None:
    """Write text that has been made safe to standard output, with one newline at its end."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def say(message: str, *, style: str = "") -> None:
    """Write a message for people to standard error."""
    console(sys.stderr).print(Text(visible(message), style=style), soft_wrap=True)
