"""How the demo looks: on a terminal one picture that keeps changing, elsewhere a line for each thing that happens.

The demo tells what it does (`act`), what it found (`fact`) and how things stand (`figures`); how that looks is decided
here alone.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

REFRESHES_PER_SECOND = 8
LINE_SECONDS = 3.0
"""Without a terminal: how often a line with figures is written while something goes on."""


@dataclass
class Light:
    """One line of the picture below the acts: a part, whether it is well, and words about it."""

    name: str
    on: bool
    words: str


@dataclass
class _Act:
    title: str
    commands: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    failed: bool = False


class Stage:
    """Shows the demo on one stream. `lights` is asked for the state of the parts each time the picture is drawn."""

    def __init__(self, stream: TextIO) -> None:
        from pointsman.cli.render import console, is_plain

        self._console: Console = console(stream)
        self._plain = is_plain(stream)
        self._act: _Act | None = None
        self._started = time.monotonic()
        self._line_at = 0.0
        self.lights: Callable[[], list[Light]] = list

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Show everything that happens within. Only what is going on moves; what is done stands still above it."""
        if self._plain:
            yield
            return
        with Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield

    @contextlib.contextmanager
    def act(self, title: str, *commands: str) -> Iterator[None]:
        """Say what is being done, and the commands that anyone could type for it."""
        act = self._act = _Act(title, list(commands))
        if self._plain:
            self._line(title)
            for command in commands:
                self._line(f"  $ {command}")
        try:
            yield
        except BaseException:
            act.failed = True
            raise
        finally:
            act.seconds = time.monotonic() - act.started
            if not self._plain:
                self._act = None
                self._console.print(_drawn(act))

    def fact(self, words: str) -> None:
        """Say something that was checked and holds."""
        if self._act is not None:
            self._act.facts.append(words)
        if self._plain:
            self._line(f"  ok: {words}")

    def tick(self) -> None:
        """Without a terminal: write the figures down now and then."""
        if self._plain and time.monotonic() >= self._line_at + LINE_SECONDS:
            self._line_at = time.monotonic()
            lights = self.lights()
            if lights:
                self._line("  " + "; ".join(f"{light.name}: {light.words}" for light in lights))

    def print(self, renderable: object) -> None:
        """Print something that stays, below everything."""
        self._console.print(renderable)

    def _line(self, words: str) -> None:
        self._console.print(Text(f"{time.monotonic() - self._started:6.1f} s  {words}"), soft_wrap=True)

    def _picture(self) -> Group:
        lights = Table.grid(padding=(0, 2))
        lights.add_column(width=3)
        lights.add_column(style="dim")
        lights.add_column()
        for light in self.lights():
            dot = Text(" ●", style="green") if light.on else Text(" ○", style="red")
            lights.add_row(dot, light.name, Text(light.words))
        act = self._act
        now: list[Table | Text] = [_drawn(act)] if act is not None else []
        return Group(*now, Text(""), lights, Text(f"   {_clock(time.monotonic() - self._started)}", style="dim"))


def _drawn(act: _Act) -> Table:
    """Return an act as it looks: a spinner and its commands while it goes on, then a mark, its facts and its time."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=2)
    grid.add_column(overflow="fold", ratio=1)
    grid.add_column(justify="right", style="dim", no_wrap=True)
    if act.seconds is None:
        mark: Spinner | Text = Spinner("dots", style="cyan")
    else:
        mark = Text("✗", style="bold red") if act.failed else Text("✓", style="green")
    grid.add_row(mark, Text(act.title), Text(f"{act.seconds:.1f} s") if act.seconds is not None else "")
    for command in act.commands:
        grid.add_row("", Text(f"$ {command}", style="cyan"), "")
    for fact in act.facts:
        grid.add_row("", Text(fact, style="dim"), "")
    return grid


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
