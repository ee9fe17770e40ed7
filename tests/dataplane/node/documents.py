"""Documents and assignments as the node's tests need them, and waiting for a state."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from contracts.v2 import (
    BufferSettings,
    BufferType,
    ConnectionDocument,
    Phase,
    PipelineDocument,
    PipelineSink,
    PipelineSource,
    PostgresConfig,
    RunState,
)
from dataplane.node.process import WorkerKey
from dataplane.node.reconciler import Desired, NodeFacts
from dataplane.node.supervisor import WorkerView
from dataplane.worker.protocol import Assignment, BufferAccess, Half, WorkerStatus

TENANT = "00000000-0000-4000-8000-000000000001"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ME = NodeFacts(
    node="node-1",
    tenant=TENANT,
    secrets_folder="/secrets",
    buffer=BufferAccess(url="nats://127.0.0.1:4222", seed_file="/data.nk"),
)


def pipeline(
    name: str = "orders",
    *,
    generation: int = 1,
    epoch: int = 1,
    run: RunState = RunState.RUNNING,
    buffer: BufferType = BufferType.DIRECT,
    restarts: int = 0,
    tables: list[str] | None = None,
) -> PipelineDocument:
    return PipelineDocument(
        tenant=TENANT,
        data_plane="local",
        name=name,
        epoch=epoch,
        generation=generation,
        run=run,
        source=PipelineSource(connection="shop", tables=tables or ["public.orders"]),
        sink=PipelineSink(connection="warehouse"),
        buffer=BufferSettings(type=buffer),
        restarts=restarts,
    )


def connection(name: str, *, generation: int = 1, port: int = 5432, database: str = "db") -> ConnectionDocument:
    return ConnectionDocument(
        tenant=TENANT,
        data_plane="local",
        name=name,
        epoch=1,
        generation=generation,
        config=PostgresConfig(host="127.0.0.1", port=port, database=database, user="postgres"),
    )


CONNECTIONS = {"shop": connection("shop"), "warehouse": connection("warehouse")}


def desired(document: PipelineDocument) -> Desired:
    return Desired(contract=2, raw=msgspec.json.encode(document).decode(), document=document)


def assignment(name: str = "orders", *, half: Half = Half.WHOLE, generation: int = 1, restarts: int = 0) -> Assignment:
    document = pipeline(name, generation=generation, restarts=restarts)
    return Assignment(
        pipeline_id=f"id-of-{name}",
        tenant=TENANT,
        half=half,
        contract=2,
        document=msgspec.json.encode(document).decode(),
        source=CONNECTIONS["shop"],
        sink=CONNECTIONS["warehouse"],
        secrets_folder="/secrets",
        owner="node-1",
        restarts=restarts,
    )


def worker_status(
    name: str = "orders",
    half: Half = Half.WHOLE,
    *,
    phase: Phase = Phase.STREAMING,
    generation: int = 1,
    **fields: object,
) -> WorkerStatus:
    values = {
        "pid": 100,
        "epoch": 1,
        "restarts": 0,
        "since_seconds": 1_700_000_000.0,
        "pipeline": name,
        "half": half,
        "phase": phase,
        "generation": generation,
        **fields,
    }
    return WorkerStatus(**values)  # type: ignore[arg-type]


def view(status: WorkerStatus | None, **fields: object) -> WorkerView:
    values = {
        "alive": True,
        "stopping": False,
        "status": status,
        "fresh": status is not None,
        "trouble": None,
        **fields,
    }
    return WorkerView(**values)  # type: ignore[arg-type]


def key(name: str = "orders", half: Half = Half.WHOLE) -> WorkerKey:
    return WorkerKey(name, half)


async def until(condition: Callable[[], bool], *, seconds: float = 15.0) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("the state that was waited for did not come")
        await asyncio.sleep(0.01)
