"""A whole Pointsman on this machine, seen as a stranger sees it: a folder, its pointsman.json, the CLI and YAML files.

Nothing here knows how the product is made. What the tests do to it (kill, stop, start) goes by the pids that it says
itself, or that the system's process table shows for its folder.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

POINTSMAN = str(Path(sys.executable).parent / "pointsman")
UP_SECONDS_MAX = 90.0
CLI_SECONDS_MAX = 120.0


def eventually(check: Callable[[], object], *, within: float, what: str, every: float = 0.1) -> Any:
    """Call `check` until it returns something true, and return that. The last refusal or answer is in the failure."""
    end = time.monotonic() + within
    last: object = None
    while True:
        try:
            last = check()
            if last:
                return last
        except (AssertionError, httpx.HTTPError, KeyError, OSError) as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:.0f} s: {what}; last: {last!r}"[:4000])
        time.sleep(every)


@dataclass(frozen=True)
class Ended:
    """How a command of the CLI ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Stack:
    """`pointsman up` in a folder of its own. `start` waits until it says that it is ready."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    # ---- its life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run `up` and wait for a fresh pointsman.json."""
        begin = time.time_ns()
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.up_log.open("ab") as log:
            self.process = subprocess.Popen(
                [POINTSMAN, "up", "--dir", str(self.folder), *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def ready() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"up ended with {self.process.returncode}: {self.up_log.read_text()[-3000:]}")
            path = self.folder / "pointsman.json"
            return path.exists() and path.stat().st_mtime_ns >= begin and bool(self.state["components"])

        eventually(ready, within=UP_SECONDS_MAX, what="pointsman.json")

    def stop(self) -> int:
        """End `up` with SIGTERM and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=90)
        self.process = None
        return code

    def kill(self) -> None:
        """Kill `up` itself, and nothing else."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def end(self) -> None:
        """Stop it, and kill whatever of its folder is still there: for the end of a test, however it went."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    # ---- what it says of itself -----------------------------------------------------------------------------------

    @property
    def up_log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "pointsman.json").read_bytes())
        return state

    @property
    def components(self) -> dict[str, dict[str, Any]]:
        """Return what pointsman.json says of each component, by its name."""
        found = self.state["components"]
        return found if isinstance(found, dict) else {each["name"]: each for each in found}

    def pid(self, component: str) -> int:
        return int(self.components[component]["pid"])

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    def processes(self) -> list[psutil.Process]:
        """Return every process that names this folder in its command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if any(str(self.folder) in word for word in line) and process.pid != os.getpid():
                    found.append(process)
        return found

    def workers(self, pipeline: str | None = None) -> list[psutil.Process]:
        """Return the worker processes of this folder's nodes."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if "dataplane.worker" in line and (pipeline is None or pipeline in line):
                    found.append(process)
        return found

    def comparing(self, pipeline: str) -> list[psutil.Process]:
        """Return the processes that compare both ends of a pipeline."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if "dataplane.reconcile" in line and pipeline in line:
                    found.append(process)
        return found

    # ---- what one does with it --------------------------------------------------------------------------------------

    def cli(
        self, *arguments: str, expect: int | None = 0, stdin: str | None = None, env: Mapping[str, str] | None = None
    ) -> Ended:
        """Run `pointsman ARGUMENTS` against this folder. `expect` is the exit code that it must have."""
        done = subprocess.run(
            [POINTSMAN, *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=CLI_SECONDS_MAX,
            check=False,
            env={**os.environ, "POINTSMAN_DIR": str(self.folder), "NO_COLOR": "1", **(env or {})},
        )
        if expect is not None and done.returncode != expect:
            raise AssertionError(
                f"pointsman {' '.join(arguments)} ended with {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}"
            )
        return Ended(done.returncode, done.stdout, done.stderr)

    def apply(self, manifest: str, *, expect: int | None = 0, env: Mapping[str, str] | None = None) -> Ended:
        """Write `manifest` to a file and apply it."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="pm-") as file:
            file.write(manifest)
            file.flush()
            return self.cli("apply", "-f", file.name, expect=expect, env=env)

    def wait(self, pipeline: str, condition: str = "ready", *, seconds: int = 60) -> None:
        self.cli("wait", "pipeline", pipeline, "--for", condition, "--timeout", str(seconds))

    def kill_component(self, name: str) -> None:
        """Kill a component with -9 and wait until it is gone."""
        process = psutil.Process(self.pid(name))
        process.kill()
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            process.wait(timeout=10)

    def kill_worker(self, pipeline: str | None = None) -> int:
        """Kill a worker with -9 and return its pid."""
        worker = eventually(lambda: self.workers(pipeline), within=30, what="a worker process")[0]
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
        return int(worker.pid)

    def api(self, *, key: str | None = None, operator: bool = False) -> httpx.Client:
        """Return an HTTP client with the tenant's key, the operator's, or the given one."""
        if key is None:
            path = self.state["operator_key_file" if operator else "api_key_file"]
            key = Path(path).read_text().strip()
        return httpx.Client(
            base_url=self.state["api"]["url"] + "/v1", headers={"Authorization": f"Bearer {key}"}, timeout=15
        )

    def events(self, path: str = "/events", *, key: str | None = None, after: int = 0) -> list[dict[str, Any]]:
        """Return every event that the API lists after one, page by page."""
        found: list[dict[str, Any]] = []
        with self.api(key=key) as api:
            while True:
                answer = api.get(path, params={"limit": 100, "after": found[-1]["id"] if found else after})
                answer.raise_for_status()
                page = answer.json()["items"]
                if not page:
                    return found
                found += page

    def pipeline(self, name: str) -> dict[str, Any]:
        with self.api() as api:
            answer = api.get(f"/pipelines/{name}")
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            return found

    def logs(self) -> Iterator[Path]:
        """Yield every log file below the folder, and that of `up`."""
        yield self.up_log
        yield from (path for path in self.folder.rglob("*.log*") if path.is_file())
