"""The worker's socket: status lines out, assignments in, as `protocol` says. It serves the agent, and nobody else.

A reader that is slow gets the newest status only; one that does not read at all is let go. A line that is no
assignment is logged and answered by nothing: the worker goes on with what it has. An accepted assignment is written
over the worker's file before it is acted on, so that a worker that is started again by hand does the newest thing too.
"""

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Protocol

import msgspec

from dataplane.worker.protocol import SOCKET_LINE_BYTES_MAX, STATUS_INTERVAL_SECONDS, Assignment, WorkerStatus
from dataplane.worker.runtime import document_of

SEND_SECONDS_MAX = 5.0

_log = logging.getLogger("pointsman.worker")


def read_assignment(path: Path) -> Assignment:
    """Read the worker's assignment.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no assignment.
    """
    return msgspec.json.decode(path.read_bytes(), type=Assignment)


def write_assignment(path: Path, assignment: Assignment) -> None:
    """Replace the worker's assignment, atomically; only its owner may read it."""
    draft = path.with_name(f".{path.name}.new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(assignment))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class Served(Protocol):
    """What runs in a process of ours: it acts on assignments, and says how it stands."""

    def status(self) -> WorkerStatus:
        """Return what it observes."""
        ...

    def assign(self, assignment: Assignment) -> None:
        """Act on this from now on."""
        ...


class Service:
    """The socket of one worker. `changed` is what the runtime calls when the status should be told at once."""

    def __init__(self, assignment_path: Path, socket_path: Path) -> None:
        self._assignment_path = assignment_path
        self._socket_path = socket_path
        self._runtime: Served | None = None
        self._changes: set[asyncio.Event] = set()
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._left_at = time.monotonic()

    def unattended_seconds(self) -> float:
        """Return for how long no agent has been connected; 0 while one is."""
        return 0.0 if self._clients else time.monotonic() - self._left_at

    def changed(self) -> None:
        """Send the status to every client soon."""
        for change in self._changes:
            change.set()

    async def start(self, runtime: Served) -> None:
        """Listen; a socket that an earlier process left behind is replaced.

        Raises:
            OSError: the path cannot be listened on.
        """
        self._runtime = runtime
        self._socket_path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, path=self._socket_path, limit=SOCKET_LINE_BYTES_MAX
            )
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Send the last status, close every connection and remove the socket."""
        if self._server is not None:
            self._server.close()
        self.changed()
        await asyncio.sleep(0)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._socket_path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        assert client is not None
        self._clients.add(client)
        telling = asyncio.create_task(self._tell(writer))
        try:
            await self._listen(reader)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(client)
            self._left_at = time.monotonic()
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            writer.close()

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        assert self._runtime is not None
        change = asyncio.Event()
        self._changes.add(change)
        try:
            while True:
                writer.write(msgspec.json.encode(self._runtime.status()) + b"\n")
                async with asyncio.timeout(SEND_SECONDS_MAX):
                    await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STATUS_INTERVAL_SECONDS):
                        await change.wait()
                change.clear()
        except (TimeoutError, OSError):
            writer.close()
        finally:
            self._changes.discard(change)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.LimitOverrunError:
                _log.error("a line on the socket is longer than %d bytes; it is closed", SOCKET_LINE_BYTES_MAX)
                return
            except asyncio.IncompleteReadError:
                return
            self._accept(line)

    def _accept(self, line: bytes) -> None:
        assert self._runtime is not None
        try:
            assignment = msgspec.json.decode(line, type=Assignment)
            document_of(assignment)
        except ValueError as error:
            _log.error("a line on the socket is no assignment: %s", error)
            return
        write_assignment(self._assignment_path, assignment)
        self._runtime.assign(assignment)
