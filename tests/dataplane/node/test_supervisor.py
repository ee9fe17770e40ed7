"""Workers are kept as they are wished for: real processes that speak the protocol, ended by their pids."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.dataplane.node.documents import assignment, key, until

from contracts.codes import Code
from dataplane.node import lifecycle, process, supervisor
from dataplane.node.process import RunFolder, WorkerFiles
from dataplane.node.supervisor import Supervisor, WorkerView
from dataplane.worker.protocol import Assignment, Half

COMMAND = (sys.executable, "-S", str(Path(__file__).with_name("fake_worker.py")))


class Supervised:
    """A supervisor that the test can close and start again over the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.changes = 0
        self.supervisor = self.begin()

    def begin(self) -> Supervisor:
        self.supervisor = Supervisor(self.folder, on_change=self._changed, command=COMMAND)
        self.supervisor.start()
        return self.supervisor

    def _changed(self) -> None:
        self.changes += 1

    def view(self, name: str = "orders", half: Half = Half.WHOLE) -> WorkerView | None:
        return self.supervisor.workers().get(key(name, half))

    def files(self, name: str = "orders", half: Half = Half.WHOLE) -> WorkerFiles:
        return RunFolder(self.folder).files(key(name, half))

    def pid(self, name: str = "orders") -> int:
        view = self.view(name)
        assert view is not None
        assert view.status is not None
        return view.status.pid

    def speaks(self, name: str = "orders", *, generation: int = 1) -> bool:
        view = self.view(name)
        return bool(view and view.fresh and view.status and view.status.generation == generation)

    def want(self, *assignments: Assignment) -> None:
        wanted = {key(msgspec.json.decode(each.document)["name"], each.half): each for each in assignments}
        self.supervisor.desire(wanted)


def arguments_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.fixture
async def supervised(folder: Path) -> AsyncIterator[Supervised]:
    started = Supervised(folder)
    yield started
    await started.supervisor.close()
    leftover = started.begin()
    await leftover.stop_all()
    await leftover.close()
    assert not list(RunFolder(started.folder).living())


async def test_a_worker_that_is_wished_for_starts_and_reports(supervised: Supervised) -> None:
    """The status comes from a process in a session of its own whose arguments name files only."""
    supervised.want(assignment())
    await until(supervised.speaks)
    pid = supervised.pid()
    assert os.getsid(pid) == pid
    assert process.pid_of(supervised.files()) == pid
    assert "public.orders" not in arguments_of(pid)
    assert supervised.files().assignment.stat().st_mode & 0o777 == 0o600


async def test_a_worker_that_is_not_wished_for_any_more_ends(supervised: Supervised) -> None:
    """It is asked to stop, and its files go with it; the log stays."""
    supervised.want(assignment())
    await until(supervised.speaks)
    supervised.want()
    await until(lambda: supervised.view() is None)
    assert not process.is_alive(supervised.files().lock)
    assert not supervised.files().assignment.exists()
    assert supervised.files().log.exists()


async def test_a_new_assignment_is_handed_over_to_the_same_process(supervised: Supervised) -> None:
    """A changed document reaches the worker through its socket."""
    supervised.want(assignment())
    await until(supervised.speaks)
    pid = supervised.pid()
    supervised.want(assignment(generation=2))
    await until(lambda: supervised.speaks(generation=2))
    assert supervised.pid() == pid


async def test_a_higher_count_of_restarts_replaces_the_process(supervised: Supervised) -> None:
    """`restart` gives a fresh process, once for each count, and nobody is blamed."""
    supervised.want(assignment())
    await until(supervised.speaks)
    pid = supervised.pid()
    supervised.want(assignment(generation=2, restarts=1))
    await until(lambda: supervised.speaks(generation=2))
    view = supervised.view()
    assert supervised.pid() != pid
    assert view is not None
    assert (view.exits_total, view.trouble) == (0, None)


async def test_a_killed_worker_comes_back(supervised: Supervised) -> None:
    """kill -9 of a worker is seen, counted and answered by a new process."""
    supervised.want(assignment())
    await until(supervised.speaks)
    pid = supervised.pid()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: supervised.speaks() and supervised.pid() != pid)
    view = supervised.view()
    assert view is not None
    assert view.exits_total == 1


async def test_a_worker_that_ends_at_once_is_started_with_backoff(supervised: Supervised) -> None:
    """Every exit is counted and makes the next start later."""
    supervised.want(assignment("crashing"))
    await until(lambda: (view := supervised.view("crashing")) is not None and view.exits_total >= 3)
    view = supervised.view("crashing")
    assert view is not None
    assert view.trouble is Code.WORKER_EXITED
    assert view.status is None


async def test_a_worker_that_falls_silent_is_replaced(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alive without a word is stalled: killed, counted and started again."""
    monkeypatch.setattr(lifecycle, "SILENCE_SECONDS_MAX", 0.5)
    supervised.want(assignment())
    await until(supervised.speaks)
    pid = supervised.pid()
    os.kill(pid, signal.SIGUSR1)
    await until(lambda: supervised.speaks() and supervised.pid() != pid)
    view = supervised.view()
    assert view is not None
    assert (view.stalls_total, view.exits_total) == (1, 0)


async def test_a_stopped_process_is_replaced_too(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that the system has frozen does not hold its pipeline up for ever."""
    monkeypatch.setattr(lifecycle, "SILENCE_SECONDS_MAX", 0.5)
    supervised.want(assignment())
    await until(supervised.speaks)
    pid = supervised.pid()
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: supervised.speaks() and supervised.pid() != pid)


async def test_an_agent_that_had_no_time_itself_blames_nobody(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence while the agent was frozen is the agent's own."""
    monkeypatch.setattr(lifecycle, "SILENCE_SECONDS_MAX", 1.0)
    monkeypatch.setattr(supervisor, "STARVED_SECONDS", 1.2)
    supervised.want(assignment())
    await until(supervised.speaks)
    pid = supervised.pid()
    blocking = asyncio.get_running_loop()
    blocking.call_soon(lambda: time.sleep(2.5))
    await asyncio.sleep(0)
    await asyncio.sleep(0.3)
    view = supervised.view()
    assert view is not None
    assert view.stalls_total == 0
    assert supervised.pid() == pid


async def test_a_worker_that_talks_nonsense_is_not_believed(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that are no status count as silence."""
    monkeypatch.setattr(lifecycle, "START_SECONDS_MAX", 1.0)
    supervised.want(assignment("rude"))
    await until(lambda: (view := supervised.view("rude")) is not None and view.stalls_total >= 1)


async def test_a_worker_that_does_not_stop_is_killed(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping is bounded in time, and a kill that was asked for is no failure."""
    monkeypatch.setattr(lifecycle, "STOP_SECONDS_MAX", 0.5)
    supervised.want(assignment("stubborn"))
    await until(lambda: supervised.speaks("stubborn"))
    supervised.want()
    await until(lambda: supervised.view("stubborn") is None)


async def test_workers_outlive_the_agent_and_are_found_again(supervised: Supervised) -> None:
    """A new agent over the same folder takes the same process over and can reassign and stop it."""
    supervised.want(assignment())
    await until(supervised.speaks)
    pid = supervised.pid()
    await supervised.supervisor.close()
    supervised.begin()
    view = supervised.view()
    assert view is not None
    assert (view.alive, view.adopted) == (True, True)
    supervised.want(assignment(generation=2))
    await until(lambda: supervised.speaks(generation=2))
    assert supervised.pid() == pid
    supervised.want()
    await until(lambda: supervised.view() is None)


async def test_a_worker_whose_pid_was_never_noted_is_found_again(supervised: Supervised) -> None:
    """An agent that was killed right after starting a worker left a lock, and the worker noted its pid itself."""
    run = RunFolder(supervised.folder)
    files = run.files(key())
    supervisor.write_assignment(files.assignment, assignment())
    command = (*COMMAND, "--assignment", str(files.assignment), "--socket", str(files.socket))
    process.start(command, files)
    supervised.begin()
    supervised.want(assignment())
    await until(supervised.speaks)
    assert supervised.pid() == process.pid_of(files)


async def test_nothing_is_stopped_before_something_was_wished(supervised: Supervised) -> None:
    """An agent that does not know yet what it should run leaves everything running."""
    supervised.want(assignment())
    await until(supervised.speaks)
    await supervised.supervisor.close()
    supervised.begin()
    await asyncio.sleep(0.3)
    view = supervised.view()
    assert view is not None
    assert (view.alive, view.stopping) == (True, False)


async def test_a_worker_that_is_kept_goes_on_with_what_it_has(supervised: Supervised) -> None:
    """A new agent that cannot decide yet keeps a worker, also through the worker's death."""
    supervised.want(assignment())
    await until(supervised.speaks)
    pid = supervised.pid()
    await supervised.supervisor.close()
    supervised.begin()
    supervised.supervisor.desire({}, keep=frozenset({key()}))
    await until(supervised.speaks)
    assert supervised.pid() == pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: supervised.speaks() and supervised.pid() != pid)


async def test_two_halves_are_two_processes(supervised: Supervised) -> None:
    """Source and sink of one pipeline live and die apart."""
    supervised.want(assignment(half=Half.SOURCE), assignment(half=Half.SINK))
    both = (Half.SOURCE, Half.SINK)
    await until(lambda: all((view := supervised.view(half=half)) is not None and view.fresh for half in both))
    pids = {view.status.pid for half in both if (view := supervised.view(half=half)) and view.status}
    assert len(pids) == 2


async def test_an_agent_killed_with_kill_9_leaves_its_workers(folder: Path) -> None:
    """Workers are no children that die with their parent, whatever kills it."""
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.dataplane.node.test_supervisor import Supervised\n"
        "from tests.dataplane.node.documents import assignment, until\n"
        "async def main():\n"
        "    supervised = Supervised(Path(sys.argv[1]))\n"
        "    supervised.want(assignment())\n"
        "    await until(supervised.speaks)\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None
    assert await asyncio.wait_for(agent.stdout.readline(), 20) == b"ready\n"
    agent.kill()
    await agent.wait()
    supervised = Supervised(folder)
    pid = process.pid_of(supervised.files())
    supervised.want(assignment())
    await until(supervised.speaks)
    assert supervised.pid() == pid
    await supervised.supervisor.stop_all()
    await supervised.supervisor.close()
