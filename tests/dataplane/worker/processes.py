"""Workers as the agent runs them: a process for each half, an assignment's file, a socket that is listened to."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import msgspec

from contracts import v1, v2
from contracts.reconciling import Reconcile
from contracts.v2 import ConnectionDocument, Phase, PipelineDocument, PostgresConfig, RunState
from dataplane.worker.protocol import Assignment, BufferAccess, Half, WorkerStatus
from pointsman.local import processes

TENANT = "7d9e3c0a-0000-4000-8000-000000000001"
SECONDS_MAX = 60.0


def connection(name: str, *, host: str, port: int, database: str) -> ConnectionDocument:
    return ConnectionDocument(
        tenant=TENANT,
        data_plane="local",
        name=name,
        epoch=1,
        generation=1,
        config=PostgresConfig(host=host, port=port, database=database, user="postgres"),
        secrets={"password": "file:password"},
    )


def document(
    tables: list[str],
    *,
    generation: int = 1,
    run: RunState = RunState.RUNNING,
    buffer: v2.BufferSettings | None = None,
    transforms: list[v2.Transform] | None = None,
    restarts: int = 0,
    resyncs: dict[str, int] | None = None,
    reconciles: dict[str, Reconcile] | None = None,
) -> PipelineDocument:
    return PipelineDocument(
        tenant=TENANT,
        data_plane="local",
        name="shop-to-warehouse",
        epoch=1,
        generation=generation,
        run=run,
        source=v2.PipelineSource(connection="shop", tables=tables),
        sink=v2.PipelineSink(connection="warehouse"),
        buffer=buffer or v2.BufferSettings(),
        transforms=transforms or [],
        restarts=restarts,
        resyncs=resyncs or {},
        reconciles=reconciles or msgspec.UNSET,
    )


class Worker:
    """One half's process and the newest status that it told."""

    module = "dataplane.worker"

    def __init__(
        self,
        folder: Path,
        half: Half,
        source: ConnectionDocument,
        sink: ConnectionDocument,
        *,
        pipeline_id: str,
        access: BufferAccess | None = None,
    ) -> None:
        self.folder = folder
        self.half = half
        self._source, self._sink, self._access = source, sink, access
        self._pipeline_id = pipeline_id
        self.assignment_path = folder / f"{half.value}.json"
        self.socket_path = folder / f"{half.value}.sock"
        self.log = folder / f"{half.value}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.status: WorkerStatus | None = None
        self.seen: list[Phase] = []
        self._listening: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        secrets = folder / "secrets"
        secrets.mkdir(exist_ok=True)
        (secrets / "password").write_text("not-needed\n")

    def assignment(self, pipeline: PipelineDocument, contract: int = 2) -> Assignment:
        shape: v1.AnyDocument | v2.AnyDocument = pipeline
        if contract == 1:
            from contracts.convert import to_v1

            shape = to_v1(pipeline)  # type: ignore[assignment]
        return Assignment(
            pipeline_id=self._pipeline_id,
            tenant=TENANT,
            half=self.half,
            contract=contract,
            document=msgspec.json.encode(shape).decode(),
            source=self._source,
            sink=self._sink,
            secrets_folder=str(self.folder / "secrets"),
            owner="node-1",
            buffer=self._access,
            restarts=pipeline.restarts,
        )

    async def start(self, pipeline: PipelineDocument | None = None, contract: int = 2) -> None:
        if pipeline is not None:
            self.assignment_path.write_bytes(msgspec.json.encode(self.assignment(pipeline, contract)))
        command = [sys.executable, "-m", self.module]
        command += ["--assignment", str(self.assignment_path), "--socket", str(self.socket_path)]
        self.socket_path.unlink(missing_ok=True)
        self.status = None
        self.process = processes.start(command, log=self.log)
        await self.connect()

    async def connect(self) -> None:
        end = time.monotonic() + SECONDS_MAX
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError):
                reader, self._writer = await asyncio.open_unix_connection(self.socket_path, limit=4 << 20)
                break
            assert time.monotonic() < end, self.log.read_text()
            await asyncio.sleep(0.01)
        self._listening = asyncio.create_task(self._listen(reader))

    async def disconnect(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._listening = self._writer = None

    async def send(self, pipeline: PipelineDocument) -> None:
        assert self._writer is not None
        self._writer.write(msgspec.json.encode(self.assignment(pipeline)) + b"\n")
        await self._writer.drain()

    async def until(self, condition: Callable[[WorkerStatus], bool], seconds_max: float = SECONDS_MAX) -> WorkerStatus:
        end = time.monotonic() + seconds_max
        while self.status is None or not condition(self.status):
            if time.monotonic() > end:
                raise AssertionError(f"{self.half.value}: {self.status}\n{self.log.read_text()[-3000:]}")
            await asyncio.sleep(0.002)
        return self.status

    async def until_phase(self, phase: Phase, generation: int = 1) -> WorkerStatus:
        return await self.until(lambda status: status.phase is phase and status.generation == generation)

    async def kill(self) -> None:
        """As the kernel would."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        await self.disconnect()

    async def stop(self) -> int:
        """As the agent asks; returns the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        end = time.monotonic() + 15
        while self.process.poll() is None:
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            await asyncio.sleep(0.01)
        await self.disconnect()
        code = self.process.returncode
        self.process = None
        return code

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self.status = msgspec.json.decode(line, type=WorkerStatus)
            if not self.seen or self.seen[-1] is not self.status.phase:
                self.seen.append(self.status.phase)


def new_pipeline_id() -> str:
    return str(uuid4())
