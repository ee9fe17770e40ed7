"""Write down one event stream for each kind of aggregate: `uv run python -m tests.histories.record`.

A recorded stream is what some control plane holds in its database. It is never changed: the script writes only those that
are missing. When an event's form changes, its old stream stays, an upcast is added, and a stream of the new form is
recorded beside it under a name of its own.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs
from tests.contracts.examples import DIGEST, NODE, SIGNER

from contracts import v2
from contracts.backfilling import Comparison, Condition
from contracts.codes import Code
from contracts.reconciling import ReconcileState
from controlplane.domain import (
    AccessGrant,
    Aggregate,
    ApiKey,
    Connection,
    Context,
    DataPlane,
    DataPlaneModel,
    DomainEvent,
    Member,
    Node,
    Pipeline,
    Placement,
    Tenant,
)
from controlplane.domain.event import encode, topic_of
from controlplane.domain.pipeline import PipelineSpec

FOLDER = Path(__file__).parent
TENANT = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
AT = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)

Decision = Callable[[Any, Context], list[DomainEvent]]

_SPEC = PipelineSpec(
    data_plane="berlin-1",
    source=v2.PipelineSource(connection="shop", tables=["public.orders", "public.customers"]),
    sink=v2.PipelineSink(connection="warehouse"),
    buffer=v2.BufferSettings(type=v2.BufferType.JETSTREAM, size_bytes_max=1 << 21),
    transforms=[
        v2.MaskTransform(
            table="public.customers", columns=["email"], method=v2.MaskMethod.HASH, secret="file:mask.key"
        ),
        v2.DropTransform(table="public.orders", columns=["notes"]),
    ],
)
_PLAIN = PipelineSpec(
    data_plane="berlin-1", source=_SPEC.source, sink=_SPEC.sink, buffer=v2.BufferSettings(), transforms=[]
)
_FEWER = structs.replace(_PLAIN, source=v2.PipelineSource(connection="shop", tables=["public.orders"]))
_WHERE = (
    Condition(column="id", comparison=Comparison.BETWEEN, values=("100", "250")),
    Condition(column="state", comparison=Comparison.IS_NULL),
)
_SIGNATURE = v2.CustomerSignature(key=NODE.public, number=1_772_600_767_890, signature="Ab-_" * 21 + "AQ")
_SIGNED = structs.replace(_PLAIN, signature=_SIGNATURE)
_CONFIG = v2.PostgresConfig(host="db.internal", database="shop", user="pointsman", port=5433, ssl_mode="require")


def _status(phase: v2.Phase, code: Code | None, seconds: int) -> v2.PipelineStatus:
    return v2.PipelineStatus(
        pipeline="shop-to-warehouse",
        epoch=1,
        observed_generation=seconds + 1,
        phase=phase,
        since=AT + timedelta(seconds=seconds),
        restarts=1,
        code=code,
        sql_state="23514" if code else None,
        table="public.orders" if code else None,
        column="amount" if code else None,
        position=v2.Position(lsn=25_000_000_000, ordinal=3) if code else None,
        tables_total=2,
        tables_copied=seconds,
    )


def _reconciled(number: int, state: ReconcileState) -> v2.ReconcileStatus:
    return v2.ReconcileStatus(
        pipeline="shop-to-warehouse",
        table="public.orders",
        number=number,
        repair=True,
        state=state,
        code=Code.RECONCILE_BEHIND if state is ReconcileState.FAILED else None,
        rows_compared=1_000,
        rows_missing=3,
        rows_repaired=2,
        seconds=1.5,
    )


STREAMS: dict[str, tuple[Aggregate, list[Decision]]] = {
    "tenant": (Tenant.new(TENANT, "acme"), [lambda it, by: it.create(by)]),
    "api-key": (
        ApiKey.new(TENANT, "k1"),
        [
            lambda it, by: it.issue(by, label="ci", hash_=DIGEST, role="editor", expires_at=AT + timedelta(days=90)),
            lambda it, by: it.revoke(by),
            lambda it, by: it.issue(by, label="ci", hash_=DIGEST[::-1], role="viewer", expires_at=None),
        ],
    ),
    "api-key-of-a-member": (
        ApiKey.new(TENANT, "k2"),
        [
            lambda it, by: it.issue(
                by,
                label="laptop",
                hash_=DIGEST,
                role="viewer",
                expires_at=None,
                member="0123456789abcdef",
                read_only=True,
            ),
        ],
    ),
    "member": (
        Member.new(TENANT, "0123456789abcdef"),
        [
            lambda it, by: it.add(by, "viewer"),
            lambda it, by: it.change_role(by, "admin"),
            lambda it, by: it.remove(by),
            lambda it, by: it.erase(by),
        ],
    ),
    "access-grant": (
        AccessGrant.new(TENANT, "support"),
        [
            lambda it, by: it.give(by, AT + timedelta(hours=4)),
            lambda it, by: it.use(by, "GetPipeline", "shop-to-warehouse"),
            lambda it, by: it.revoke(by),
        ],
    ),
    "data-plane": (
        DataPlane.new(TENANT, "berlin-1"),
        [
            lambda it, by: it.create(by, DataPlaneModel.BYOC),
            lambda it, by: it.issue_token(by, DIGEST, AT + timedelta(hours=1)),
            lambda it, by: it.redeem(by, DIGEST, "node-1", SIGNER.public),
            lambda it, by: it.create(by, DataPlaneModel.SELF_MANAGED),
            lambda it, by: it.delete(by),
            lambda it, by: it.create(by, DataPlaneModel.MANAGED),
        ],
    ),
    "node": (
        Node.new(TENANT, "node-1"),
        [
            lambda it, by: it.enrol(by, data_plane="berlin-1", key=NODE.public, contract=1),
            lambda it, by: it.revoke(by),
            lambda it, by: it.enrol(by, data_plane="berlin-1", key=NODE.public, contract=2),
        ],
    ),
    "connection": (
        Connection.new(TENANT, "shop"),
        [
            lambda it, by: it.configure(by, type_="postgres", config=_CONFIG, secrets={"password": "env:SHOP"}),
            lambda it, by: it.delete(by),
            lambda it, by: it.configure(by, type_="postgres", config=_CONFIG, secrets={"password": "file:shop"}),
        ],
    ),
    "pipeline": (
        Pipeline.new(TENANT, "shop-to-warehouse"),
        [
            lambda it, by: it.configure(by, _PLAIN),
            lambda it, by: it.pause(by),
            lambda it, by: it.configure(by, _SPEC),
            lambda it, by: it.resume(by),
            lambda it, by: it.restart(by),
            lambda it, by: it.remove(by),
            lambda it, by: it.delete(by),
            lambda it, by: it.configure(by, _SPEC),
        ],
    ),
    "data-plane-in-a-region": (
        DataPlane.new(TENANT, "berlin-1"),
        [
            lambda it, by: it.create(by, DataPlaneModel.BYOC, "eu-central-1"),
            lambda it, by: it.create(by, DataPlaneModel.BYOC),
        ],
    ),
    "placement-under-policy": (
        Placement.of(TENANT, "shop-to-warehouse", "berlin-1"),
        [
            lambda it, by: it.report(
                by, "berlin-1", "node-1", structs.replace(_status(v2.Phase.STREAMING, None, 0), policy=DIGEST)
            ),
        ],
    ),
    "pipeline-signed": (
        Pipeline.new(TENANT, "shop-to-warehouse"),
        [lambda it, by: it.configure(by, _SIGNED), lambda it, by: it.configure(by, _PLAIN)],
    ),
    "connection-signed": (
        Connection.new(TENANT, "shop"),
        [lambda it, by: it.configure(by, type_="postgres", config=_CONFIG, secrets={}, signature=_SIGNATURE)],
    ),
    "pipeline-resynced": (
        Pipeline.new(TENANT, "shop-to-warehouse"),
        [
            lambda it, by: it.configure(by, _PLAIN),
            lambda it, by: it.resync(by, _PLAIN.source.tables),
            lambda it, by: it.resync(by, _PLAIN.source.tables[:1]),
            lambda it, by: it.delete(by),
            lambda it, by: it.configure(by, _SPEC),
            lambda it, by: it.resync(by, _SPEC.source.tables[:1]),
        ],
    ),
    "pipeline-copies-steered": (
        Pipeline.new(TENANT, "shop-to-warehouse"),
        [
            lambda it, by: it.configure(by, _PLAIN),
            lambda it, by: it.backfill(by, "public.orders", _WHERE),
            lambda it, by: it.backfill(by, "public.customers", _WHERE[:1]),
            lambda it, by: it.pause_copying(by, ["public.orders"]),
            lambda it, by: it.pause_copying(by, ["public.customers", "public.orders"]),
            lambda it, by: it.resume_copying(by, ["public.orders"]),
            lambda it, by: it.configure(by, _FEWER),
            lambda it, by: it.delete(by),
            lambda it, by: it.configure(by, _SPEC),
            lambda it, by: it.backfill(by, "public.orders", _WHERE[1:]),
        ],
    ),
    "pipeline-reconciled": (
        Pipeline.new(TENANT, "shop-to-warehouse"),
        [
            lambda it, by: it.configure(by, _PLAIN),
            lambda it, by: it.reconcile(by, _PLAIN.source.tables, repair=False),
            lambda it, by: it.reconcile(by, _PLAIN.source.tables[:1], repair=True),
            lambda it, by: it.delete(by),
            lambda it, by: it.configure(by, _SPEC),
            lambda it, by: it.reconcile(by, _SPEC.source.tables[:1], repair=False),
        ],
    ),
    "placement-reconciled": (
        Placement.of(TENANT, "shop-to-warehouse", "berlin-1"),
        [
            lambda it, by: it.report_reconcile(by, "berlin-1", "node-1", _reconciled(1, ReconcileState.RUNNING)),
            lambda it, by: it.report_reconcile(by, "berlin-1", "node-1", _reconciled(1, ReconcileState.DONE)),
            lambda it, by: it.report_reconcile(by, "berlin-1", "node-2", _reconciled(1, ReconcileState.RUNNING)),
            lambda it, by: it.report_reconcile(by, "berlin-1", "node-2", _reconciled(2, ReconcileState.FAILED)),
        ],
    ),
    "placement": (
        Placement.of(TENANT, "shop-to-warehouse", "berlin-1"),
        [
            lambda it, by: it.report(by, "berlin-1", "node-1", _status(v2.Phase.SNAPSHOTTING, None, 0)),
            lambda it, by: it.report(by, "berlin-1", "node-2", _status(v2.Phase.DEGRADED, Code.SINK_CONSTRAINT, 1)),
        ],
    ),
}


def stream(name: str) -> list[DomainEvent]:
    """Return the events that the decisions of a stream lead to."""
    aggregate, decisions = STREAMS[name]
    events: list[DomainEvent] = []
    for number, decide in enumerate(decisions):
        made = decide(aggregate, Context(actor=f"key:k{number}", at=AT + timedelta(minutes=number)))
        for event in made:
            aggregate = aggregate.after(event)
        events += made
    return events


def recorded(name: str) -> bytes:
    """Return what the file of a stream holds: the events as they are stored, and the state that they lead to."""
    first, _ = STREAMS[name]
    state: Aggregate = first
    for event in stream(name):
        state = state.after(event)
    history = {
        "kind": first.KIND,
        "tenant": first.tenant,
        "name": first.name,
        "events": [{"topic": topic_of(type(event)), "state": encode(event).decode()} for event in stream(name)],
        "state": msgspec.to_builtins(state),
    }
    return msgspec.json.format(msgspec.json.encode(history), indent=2) + b"\n"


def main() -> int:
    """Write the streams that are missing."""
    for name in STREAMS:
        path = FOLDER / f"{name}.json"
        if not path.exists():
            path.write_bytes(recorded(name))
            print(f"new: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
