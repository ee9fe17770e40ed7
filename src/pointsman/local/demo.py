"""The demo: rows flow from a shop to a warehouse while hub and control plane are gone and the worker is killed.

Nothing is staged: `pointsman up` runs as it always does, the pipeline is applied with the command line, and each act
ends with a check that fails the demo if it does not hold. At the end every row is compared and the audit log verified.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from rich.table import Table
from rich.text import Text

from pointsman.client import Client
from pointsman.local import orders, processes, workload
from pointsman.local.comparison import compare
from pointsman.local.components import CONTROL_PLANE, DATA_PLANE, HUB
from pointsman.local.demo_databases import SERVERS, USER, DemoDatabases
from pointsman.local.founding import read_secret
from pointsman.local.layout import Layout, read_json, write_whole
from pointsman.local.scene import Scene
from pointsman.local.stage import Stage
from pointsman.local.workload import TABLES, Writer
from pointsman.problems import Exit, Problem

PIPELINE = "shop-to-warehouse"
TRANSACTIONS_PER_SECOND = 60.0
LARGE_TRANSACTION_ROWS = 20_000
STREAM_SECONDS = 5.0
ACT_SECONDS_MAX = 60.0
UP_SECONDS_MAX = 150.0
POLL_SECONDS = 0.05

MANIFESTS = """\
kind: Connection
name: shop
type: postgres
config: {{host: 127.0.0.1, port: {shop}, database: shop, user: {user}}}
secrets: {{password: "file:shop_password"}}
---
kind: Connection
name: warehouse
type: postgres
config: {{host: 127.0.0.1, port: {warehouse}, database: warehouse, user: {user}}}
secrets: {{password: "file:warehouse_password"}}
---
kind: Pipeline
name: {pipeline}
data_plane: {data_plane}
source: {{connection: shop, tables: [{tables}]}}
sink: {{connection: warehouse}}
buffer: {{type: jetstream}}
"""


class _Outcome(Enum):
    HELD = "held"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Demo:
    """One run of the demo."""

    def __init__(self, folder: Path | None, *, keep: bool, stage: Stage) -> None:
        self._temporary = folder is None
        self._given = folder
        self._keep = keep
        self._stage = stage
        self._found: dict[str, Any] = {}
        self._up: subprocess.Popen[bytes] | None = None
        self._writer: Writer | None = None
        self._scene: Scene | None = None

    def run(self) -> dict[str, Any]:
        """Play all acts and return the summary; `ok` says whether everything held.

        Raises:
            Problem: the folder is in use, or something does not hold.
            KeyboardInterrupt: somebody interrupted; everything that was started has ended.
        """
        started = time.monotonic()
        layout = self._layout = Layout(self._folder())
        self._databases = DemoDatabases(layout)
        outcome = _Outcome.INTERRUPTED
        with _interruptible():
            try:
                with self._stage.open():
                    self._play()
                outcome = _Outcome.HELD
            except Problem:
                outcome = _Outcome.FAILED
                raise
            except (psycopg.Error, subprocess.SubprocessError, OSError, RuntimeError) as error:
                outcome = _Outcome.FAILED
                raise _failed(f"{type(error).__name__}: {error}", layout) from error
            finally:
                self._close(outcome)
        summary = {"ok": True, "seconds": round(time.monotonic() - started, 1), **self._found}
        self._tell(summary)
        return summary

    def _folder(self) -> Path:
        if self._given is None:
            return Path(tempfile.mkdtemp(prefix="pointsman-demo-")).resolve()
        if self._given.exists() and any(self._given.iterdir()):
            raise Problem(
                "demo_failed",
                f"{self._given} is not empty.",
                hint="The demo begins from nothing: name a folder that does not exist yet, or leave --dir out.",
                exit_code=Exit.CONFLICT,
            )
        self._given.mkdir(parents=True, exist_ok=True)
        return self._given.resolve()

    # ---- The acts ----

    def _play(self) -> None:
        self._start_planes()
        self._open_shop()
        state = read_json(self._layout.state_file)
        with Client(state["api"]["url"], read_secret(Path(state["api_key_file"])), attempts_max=1) as client:
            writer = self._writer = Writer(
                self._databases.conninfo("shop"), transactions_per_second=TRANSACTIONS_PER_SECOND, seed=1
            )
            scene = self._scene = Scene(self._layout, client, self._databases.conninfo("warehouse"), writer, PIPELINE)
            self._stage.lights = scene.lights
            writer.start()
            scene.start()
            try:
                self._apply()
                self._stream()
                self._lose_control_plane()
                self._kill_worker()
                self._regain_control_plane(client)
                self._finish_writing()
                self._compare()
                self._verify(client)
            finally:
                scene.close()

    def _start_planes(self) -> None:
        layout = self._layout
        with self._stage.act("Both planes start on this machine", f"pointsman up --dir {layout.root}"):
            layout.prepare()
            self._databases.make_servers()
            command = [sys.executable, "-P", "-m", "pointsman", "up", "--dir", str(layout.root)]
            up = self._up = processes.start(command, log=layout.log("up"), folder=Path("/"))
            self._until(
                "Both planes become ready",
                lambda: layout.state_file.exists() or up.poll() is not None,
                seconds_max=UP_SECONDS_MAX,
            )
            if up.poll() is not None:
                raise _failed("`pointsman up` ended.", layout, log="up")
            components = read_json(layout.state_file)["components"]
            self._stage.fact(f"{len(components)} processes: " + ", ".join(item["name"] for item in components))

    def _open_shop(self) -> None:
        with self._stage.act("A shop opens, with a database; a warehouse has an empty one"):
            self._databases.make()
            with psycopg.connect(self._databases.conninfo("shop")) as connection:
                rows = workload.populate(connection)
            self._stage.fact(f"{rows:,} rows in {len(TABLES)} tables")

    def _apply(self) -> None:
        file = self._layout.root / "demo" / "pipeline.yaml"
        ports = {name: self._databases.port(name) for name in SERVERS}
        tables = ", ".join(TABLES)
        text = MANIFESTS.format(**ports, user=USER, pipeline=PIPELINE, data_plane=DATA_PLANE, tables=tables)
        write_whole(file, text)
        with self._stage.act("A pipeline is applied, through the API", "pointsman apply -f demo/pipeline.yaml"):
            command = [
                sys.executable,
                "-P",
                "-m",
                "pointsman",
                "apply",
                "-f",
                str(file),
                "--dir",
                str(self._layout.root),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=ACT_SECONDS_MAX, check=False)
            if done.returncode != 0:
                raise _failed("The pipeline could not be applied: " + done.stderr.strip(), self._layout)
            self._stage.fact(", ".join(done.stdout.strip().splitlines()))

    def _stream(self) -> None:
        scene, writer = self._watched()
        with self._stage.act("What is there is copied, while the shop goes on; then every change follows"):
            self._until("The pipeline streams", lambda: bool((scene.seen.pipeline.get("status") or {}).get("ready")))
            self._catch_up("The first transactions arrive")
            with psycopg.connect(self._databases.conninfo("warehouse")) as connection:
                rows = workload.count_rows(connection)
            self._stage.fact(f"{rows:,} rows in the warehouse")
            from_number, start = scene.seen.arrived, time.monotonic()
            self._for_seconds(STREAM_SECONDS)
            self._catch_up("Changes arrive")
            done = scene.seen.arrived - from_number
            latency = ((scene.seen.pipeline.get("status") or {}).get("telemetry") or {}).get("latency_seconds")
            words = f"{done / (time.monotonic() - start):.0f} transactions a second"
            if latency:
                words += f", {latency * 1000:.0f} ms from commit to commit"
                self._found["latency_seconds"] = latency
            self._stage.fact(words)
            assert writer.failure is None

    def _lose_control_plane(self) -> None:
        scene, writer = self._watched()
        commands = (f"pointsman stop {CONTROL_PLANE}", f"pointsman stop {HUB}")
        with self._stage.act("Control plane and hub are stopped", *commands):
            orders.stop(self._layout, CONTROL_PLANE)
            orders.stop(self._layout, HUB)
            self._away_since = time.monotonic()
            self._until("The control plane is away", lambda: not (scene.seen.control_plane or scene.seen.hub))
            from_number = writer.transactions
            self._for_seconds(STREAM_SECONDS)
            self._until("Rows flow without a control plane", lambda: scene.seen.arrived >= from_number + 50)
            self._catch_up("Rows flow without a control plane")
            self._stage.fact(f"{scene.seen.arrived - from_number:,} transactions went on to the warehouse")

    def _kill_worker(self) -> None:
        scene, writer = self._watched()
        victims = dict(scene.seen.workers)
        pids = " ".join(str(pid) for pid in victims.values())
        with self._stage.act("The workers are killed, with nobody above to help", f"kill -9 {pids}"):
            if not victims:
                raise _failed("There is no worker to kill.", self._layout)
            for pid in victims.values():
                os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            from_number = writer.transactions

            def are_back() -> bool:
                return len(scene.seen.workers) == len(victims) and not set(scene.seen.workers.values()) & set(
                    victims.values()
                )

            self._until("The workers come back", are_back)
            self._until("Rows flow again", lambda: scene.seen.arrived > from_number)
            back = time.monotonic() - killed
            self._catch_up("The warehouse catches up")
            if scene.seen.control_plane:
                raise _failed("The control plane was not away.", self._layout)
            self._found["recovery_seconds"] = round(back, 2)
            self._stage.fact(f"new workers, and rows again after {back:.1f} s; the control plane is still away")

    def _regain_control_plane(self, client: Client) -> None:
        scene, _ = self._watched()
        commands = (f"pointsman start {HUB}", f"pointsman start {CONTROL_PLANE}")
        with self._stage.act("Hub and control plane start again", *commands):
            orders.start(self._layout, HUB)
            orders.start(self._layout, CONTROL_PLANE)
            away = time.monotonic() - self._away_since
            self._until("The control plane is ready", client.is_ready)
            pids = set(scene.seen.workers.values())

            def has_caught_up() -> bool:
                status = scene.seen.pipeline.get("status") or {}
                rows = (status.get("telemetry") or {}).get("rows_total") or 0
                return scene.seen.control_plane and bool(status.get("ready")) and rows > 0

            # What was read before the outage must not pass for what is known now.
            scene.seen.pipeline = {}
            self._until("The status catches up", has_caught_up)
            if pids != set(scene.seen.workers.values()):
                raise _failed("A worker was restarted because the control plane came back.", self._layout)
            self._found["away_seconds"] = round(away, 1)
            self._stage.fact(f"away for {away:.0f} s; the status is current again, and no worker was disturbed")

    def _finish_writing(self) -> None:
        scene, writer = self._watched()
        with self._stage.act(f"One transaction of {LARGE_TRANSACTION_ROWS:,} rows; then the shop closes"):
            writer.write_large_transaction(LARGE_TRANSACTION_ROWS)
            self._until("The large transaction is written", lambda: writer.kinds["large transaction"] == 1)
            last = writer.stop()
            self._until("The last transaction arrives", lambda: scene.seen.arrived >= last)
            kinds = ", ".join(f"{count} {name}" for name, count in writer.kinds.most_common())
            self._found |= {"transactions": last, "rows_written": writer.rows, "kinds": dict(writer.kinds)}
            self._stage.fact(f"all {last:,} transactions arrived: {kinds}")

    def _compare(self) -> None:
        with self._stage.act("Shop and warehouse are compared, row by row"):
            found = [
                compare(self._databases.conninfo("shop"), self._databases.conninfo("warehouse"), table)
                for table in TABLES
            ]
            wrong = [one for one in found if not one.equal]
            if wrong:
                details = [example for one in wrong for example in one.examples]
                raise _failed("Shop and warehouse differ.", self._layout, details=details)
            rows = sum(one.rows for one in found)
            self._found["rows_compared"] = rows
            self._stage.fact(f"{rows:,} rows, all equal: none missing, none twice, none different")

    def _verify(self, client: Client) -> None:
        from pointsman.cli.audit import verified

        with self._stage.act("The audit log is verified", "pointsman audit verify"):
            item, _ = verified(client, pinned=frozenset(), earlier=[])
            self._found["audit_entries"] = item["entries"]
            self._stage.fact(f"{item['entries']} entries, chained and signed")

    # ---- Waiting ----

    def _watched(self) -> tuple[Scene, Writer]:
        assert self._scene is not None and self._writer is not None  # noqa: PT018 - made together
        return self._scene, self._writer

    def _until(self, what: str, holds: Callable[[], bool], *, seconds_max: float = ACT_SECONDS_MAX) -> None:
        end = time.monotonic() + seconds_max
        while not holds():
            if self._writer is not None and self._writer.failure is not None:
                raise self._writer.failure
            if time.monotonic() > end:
                raise _failed(f"This did not happen within {seconds_max:.0f} s: {what}.", self._layout)
            self._stage.tick()
            time.sleep(POLL_SECONDS)

    def _for_seconds(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._until("The clock goes on", lambda: time.monotonic() >= end)

    def _catch_up(self, what: str) -> None:
        """Wait until all that is written by now has arrived."""
        scene, writer = self._watched()
        number = writer.transactions
        self._until(what, lambda: scene.seen.arrived >= number)

    # ---- The end ----

    def _close(self, outcome: _Outcome) -> None:
        if self._writer is not None:
            with contextlib.suppress(psycopg.Error, RuntimeError):
                self._writer.stop()
        lives = self._up is not None and self._up.poll() is None
        if self._keep and lives and outcome is not _Outcome.INTERRUPTED:
            return
        orders.stop_everything(self._layout)
        if self._up is not None:
            self._up.wait(timeout=10)
        # After a failure the logs are of use; otherwise nothing is left behind.
        if self._temporary and outcome is not _Outcome.FAILED:
            shutil.rmtree(self._layout.root, ignore_errors=True)

    def _tell(self, summary: dict[str, Any]) -> None:
        grid = Table.grid(padding=(0, 2))
        for name, value in (
            ("transactions", f"{summary['transactions']:,}, {summary['rows_written']:,} changes of rows"),
            ("without control", f"{summary['away_seconds']:.0f} s, and rows flowed all the time"),
            ("worker killed", f"rows again after {summary['recovery_seconds']:.1f} s"),
            ("compared", f"{summary['rows_compared']:,} rows, all equal"),
            ("audit log", f"{summary['audit_entries']} entries, verified"),
            ("time", f"{summary['seconds']:.0f} s"),
        ):
            grid.add_row(Text(f"  {name}", style="dim"), Text(value))
        self._stage.print(Text("Everything held.", style="bold green"))
        self._stage.print(grid)
        if self._keep:
            self._tell_addresses()

    def _tell_addresses(self) -> None:
        root = self._layout.root
        state = read_json(self._layout.state_file)
        lines = [
            "",
            "It goes on running:",
            f"  API        {state['api']['url']}   key in {state['api_key_file']}",
            *(f"  {name:<10} {self._databases.address(name)}" for name in SERVERS),
            f"  try        export POINTSMAN_DIR={root}; pointsman describe pipeline {PIPELINE}",
            f"  end it     pointsman down --dir {root}",
        ]
        self._stage.print(Text("\n".join(lines)))


def _failed(message: str, layout: Layout, *, log: str | None = None, details: list[str] | None = None) -> Problem:
    return Problem(
        "demo_failed",
        message,
        hint=f"Logs are in {layout.root / 'logs'}" + (f", begin with {log}.log" if log else "") + ".",
        details=details or (),
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: unwind, and end what was started."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
