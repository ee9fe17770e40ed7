"""One example of every message and version, by the name of its golden file. Fixed keys and times: nothing random."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from contracts import v1, v2
from contracts.backfilling import Backfill, Comparison, Condition, CopyProgress
from contracts.checks import Check, Outcome, State
from contracts.codes import Code
from contracts.envelope import Purpose, sign
from contracts.keys import KeyPair, Role
from contracts.reconciling import Reconcile, ReconcileState
from contracts.slots import Invalidation, OnFull, Slot, SlotStatus, SourceLog

SIGNER = KeyPair.derive(Role.ACCOUNT, bytes(range(32)))
NODE = KeyPair.derive(Role.USER, bytes(range(1, 33)))
AT = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
LATER = datetime(2026, 3, 4, 5, 6, 8, tzinfo=UTC)
DIGEST = "0123456789abcdef" * 4
CORRELATION = "00112233445566778899aabbccddeeff"
ADDRESS: dict[str, Any] = {
    "tenant": "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "data_plane": "berlin-1",
    "epoch": 1,
    "generation": 7,
}

_MASK = v2.MaskTransform(
    table="public.customers", columns=["email", "Phone$2"], method=v2.MaskMethod.HASH, secret="file:keys/mask.key"
)
_DROP = v2.DropTransform(table="public.orders", columns=["notes"])
_SOURCE = v2.PipelineSource(connection="shop", tables=["public.orders", "public.customers"])
_SOURCE_1 = v1.PipelineSource(connection="shop", tables=["public.orders", "public.customers"])
_SINK = v2.PipelineSink(connection="warehouse")
_SINK_1 = v1.PipelineSink(connection="warehouse")
_POSITION = v2.Position(lsn=25_000_000_000, ordinal=199_999)
_OBSERVED: dict[str, Any] = {
    "pipeline": "shop-to-warehouse",
    "epoch": 1,
    "observed_generation": 7,
    "phase": v2.Phase.DEGRADED,
    "since": AT,
    "restarts": 2,
    "code": Code.SINK_VALUE_REFUSED,
    "sql_state": "22P02",
    "table": "public.orders",
    "position": _POSITION,
}
_MET: dict[str, Any] = {
    "code": Code.SOURCE_UNREACHABLE,
    "at": AT,
    "count": 3,
    "pipeline": "shop-to-warehouse",
    "table": "public.orders",
    "sql_state": "08006",
}
_ALIVE: dict[str, Any] = {"at": LATER, "started_at": AT, "agent_version": "0.1.0", "index_digest": DIGEST}
_NUMBERS: dict[str, Any] = {
    "pipeline": "shop-to-warehouse",
    "rows_total": 1_000_000,
    "bytes_total": 2**40,
    "transactions_total": 5_000,
    "errors_total": 1,
    "lag_bytes": 4096,
    "lag_seconds": 0.25,
    "latency_seconds": 0.015625,
    "buffer_bytes": 1,
    "slot_retained_bytes": 16_777_216,
}

_SAME_IN_BOTH: dict[str, msgspec.Struct] = {
    "connection": v2.ConnectionDocument(
        **ADDRESS,
        name="shop",
        config=v2.PostgresConfig(host="db.internal", database="shop", user="pointsman", port=5433, ssl_mode="require"),
        secrets={"password": "file:shop_password"},
    ),
    "trust": v2.TrustDocument(**ADDRESS, name="trust", keys=[SIGNER.public]),
    "requires": v2.RequiresDocument(**ADDRESS, name="shop-to-warehouse", of=v2.Kind.PIPELINE, contract=2),
    "index": v2.IndexDocument(
        **ADDRESS,
        name="index",
        revision=4711,
        entries=[
            v2.IndexEntry(kind=v2.Kind.CONNECTION, name="shop", generation=1, digest=DIGEST),
            v2.IndexEntry(kind=v2.Kind.PIPELINE, name="shop-to-warehouse", generation=7, digest=DIGEST[::-1]),
        ],
    ),
    "sync": v2.SyncRequest(
        index_digest=DIGEST,
        index_epoch=1,
        index_revision=4711,
        wanted=[v2.Wanted(kind=v2.Kind.PIPELINE, name="shop-to-warehouse", generation=7, digest=DIGEST)],
    ),
    "sync-first": v2.SyncRequest(),
    "sync-reply": v2.SyncReply(index="{}", documents=["{}", "{}"], more=True),
    "question": v2.Question(id=CORRELATION, topic=v2.QuestionTopic.CONNECTION_TEST, name="shop", deadline=LATER),
    "answer": v2.Answer(id=CORRELATION, ok=False, code=Code.SOURCE_AUTH_FAILED, sql_state="28P01", elapsed_seconds=0.5),
    "schema-seen": v2.SchemaSeen(
        pipeline="shop-to-warehouse",
        table="public.orders",
        columns=[
            v2.ColumnSeen(name="id", type="int8", key=True, nullable=False),
            v2.ColumnSeen(name="note", type="text", key=False, nullable=True),
        ],
    ),
    "receipt": v2.Receipt(sequence=42, accepted=False, code="document_refused"),
}

_CUSTOMER = v2.CustomerSignature(key=NODE.public, number=1_772_600_767_890, signature="Ab-_" * 21 + "AQ")

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"

MESSAGES_1: dict[str, msgspec.Struct] = {
    **_SAME_IN_BOTH,
    "pipeline": v1.PipelineDocument(
        **ADDRESS,
        name="shop-to-warehouse",
        run=v2.RunState.RUNNING,
        source=_SOURCE_1,
        sink=_SINK_1,
        buffer=v2.BufferType.JETSTREAM,
        transform=_MASK,
        restarts=3,
    ),
    "pipeline-without-transform": v1.PipelineDocument(
        **ADDRESS, name="shop-to-warehouse", run=v2.RunState.PAUSED, source=_SOURCE_1, sink=_SINK_1
    ),
    "pipeline-status": v1.PipelineStatus(**_OBSERVED),
    "heartbeat": v1.Heartbeat(
        **_ALIVE,
        contract=1,
        pipelines=[v1.PipelineStatus(**_OBSERVED)],
        telemetry=[v1.PipelineTelemetry(**_NUMBERS)],
    ),
    "error": v1.ErrorReport(**_MET),
    "report": v1.Report(node="node-1", key=NODE.public, sequence=42, message=v1.ErrorReport(**_MET)),
}

MESSAGES_2: dict[str, msgspec.Struct] = {
    **_SAME_IN_BOTH,
    "pipeline": v2.PipelineDocument(
        **ADDRESS,
        name="shop-to-warehouse",
        run=v2.RunState.REMOVED,
        source=_SOURCE,
        sink=_SINK,
        buffer=v2.BufferSettings(type=v2.BufferType.JETSTREAM, confirm=v2.Confirm.SINK, size_bytes_max=1 << 21),
        transforms=[_MASK, _DROP],
        restarts=3,
        resyncs={"public.orders": 2},
    ),
    "pipeline-status-under-policy": v2.PipelineStatus(**_OBSERVED, policy=DIGEST),
    "pipeline-signed": v2.PipelineDocument(
        **ADDRESS, name="shop-to-warehouse", run=v2.RunState.RUNNING, source=_SOURCE, sink=_SINK, signature=_CUSTOMER
    ),
    "connection-signed": v2.ConnectionDocument(
        **ADDRESS,
        name="shop",
        config=v2.PostgresConfig(host="db.internal", database="shop", user="pointsman"),
        signature=_CUSTOMER,
    ),
    "pipeline-without-transform": v2.PipelineDocument(
        **ADDRESS, name="shop-to-warehouse", run=v2.RunState.PAUSED, source=_SOURCE, sink=_SINK
    ),
    "pipeline-with-dead-letters": v2.PipelineDocument(
        **ADDRESS,
        name="shop-to-warehouse",
        run=v2.RunState.RUNNING,
        source=_SOURCE,
        sink=v2.PipelineSink(
            connection="warehouse",
            on_refused=v2.OnRefused.DEAD_LETTER,
            dead_letters_max=50,
            on_schema_change=v2.OnSchemaChange.PAUSE,
            resumes=2,
        ),
    ),
    "pipeline-in-lanes": v2.PipelineDocument(
        **ADDRESS,
        name="shop-to-warehouse",
        run=v2.RunState.RUNNING,
        source=_SOURCE,
        sink=v2.PipelineSink(connection="warehouse", consistency=v2.Consistency.KEY, parallelism=4),
    ),
    "pipeline-to-reconcile": v2.PipelineDocument(
        **ADDRESS,
        name="shop-to-warehouse",
        run=v2.RunState.RUNNING,
        source=_SOURCE,
        sink=_SINK,
        reconciles={
            "public.customers": Reconcile(number=2),
            "public.orders": Reconcile(number=3, repair=True),
        },
    ),
    "pipeline-with-backfills": v2.PipelineDocument(
        **ADDRESS,
        name="shop-to-warehouse",
        run=v2.RunState.RUNNING,
        source=_SOURCE,
        sink=_SINK,
        backfills={
            "public.orders": Backfill(
                number=4,
                where=(
                    Condition(column="id", comparison=Comparison.BETWEEN, values=("100", "250")),
                    Condition(column="state", comparison=Comparison.IN, values=("new", "it's, (on) hold")),
                    Condition(column="note", comparison=Comparison.IS_NOT_NULL),
                ),
            )
        },
        snapshots_paused=["public.customers"],
    ),
    "reconcile-status": v2.ReconcileStatus(
        pipeline="shop-to-warehouse",
        table="public.orders",
        number=3,
        repair=True,
        state=ReconcileState.FAILED,
        code=Code.SINK_UNREACHABLE,
        sql_state="08006",
        rows_compared=1_000_000,
        rows_missing=1,
        rows_extra=2,
        rows_different=3,
        rows_unsettled=4,
        rows_repaired=5,
        seconds=20.5,
    ),
    "heartbeat-with-dead-letters": v2.Heartbeat(
        **_ALIVE,
        contract=2,
        telemetry=[
            v2.PipelineTelemetry(pipeline="shop-to-warehouse", dead_letters=3, dead_letters_total=9, columns_ignored=1)
        ],
    ),
    "heartbeat-with-undecodable-values": v2.Heartbeat(
        **_ALIVE,
        contract=2,
        telemetry=[v2.PipelineTelemetry(pipeline="shop-to-warehouse", undecodable_values_total=2)],
    ),
    "heartbeat-with-copies": v2.Heartbeat(
        **_ALIVE,
        contract=2,
        telemetry=[
            v2.PipelineTelemetry(
                pipeline="shop-to-warehouse",
                snapshot_rows=50_000,
                snapshot_rows_estimated=200_000,
                snapshot_bytes=6_000_000,
                snapshot_seconds_left=12.5,
            )
        ],
    ),
    "heartbeat-with-copies-of-tables": v2.Heartbeat(
        **_ALIVE,
        contract=2,
        telemetry=[
            v2.PipelineTelemetry(
                pipeline="shop-to-warehouse",
                copies=[
                    CopyProgress(
                        table="public.orders", rows=7, rows_estimated=90, bytes=1234, seconds_left=2.5, part=True
                    ),
                    CopyProgress(table="public.customers", paused=True),
                ],
            )
        ],
    ),
    "pipeline-with-snapshot": v2.PipelineDocument(
        **ADDRESS,
        name="shop-to-warehouse",
        run=v2.RunState.RUNNING,
        source=v2.PipelineSource(
            connection="shop",
            tables=["public.orders"],
            snapshot=v2.SnapshotSettings(parallelism=4, chunk_rows=10_000),
        ),
        sink=v2.PipelineSink(connection="warehouse"),
    ),
    "pipeline-with-failover": v2.PipelineDocument(
        **ADDRESS,
        name="shop-to-warehouse",
        run=v2.RunState.RUNNING,
        source=v2.PipelineSource(
            connection="shop",
            tables=["public.orders"],
            log=SourceLog(retain_bytes_max=1 << 36, on_full=OnFull.STOP),
            failover=True,
        ),
        sink=_SINK,
    ),
    "heartbeat-with-slots": v2.Heartbeat(
        **_ALIVE,
        contract=2,
        telemetry=[
            v2.PipelineTelemetry(
                pipeline="shop-to-warehouse",
                slot_retained_bytes=1 << 34,
                slot=Slot(
                    status=SlotStatus.EXTENDED,
                    active=True,
                    retained_bytes=1 << 34,
                    unconfirmed_bytes=1 << 20,
                    safe_bytes=1 << 35,
                    limit_bytes=1 << 36,
                    growth_bytes_per_second=4096.5,
                    seconds_left=3600.25,
                    catalog_age=17,
                    spill_bytes=1 << 22,
                ),
            ),
            v2.PipelineTelemetry(
                pipeline="another",
                slot=Slot(status=SlotStatus.LOST, inactive_seconds=86_400.5, invalidation=Invalidation.IDLE_TIMEOUT),
            ),
        ],
    ),
    "pipeline-status": v2.PipelineStatus(**_OBSERVED, column="note", tables_total=2, tables_copied=1),
    "heartbeat": v2.Heartbeat(
        **_ALIVE,
        contract=2,
        pipelines=[v2.PipelineStatus(**_OBSERVED, column="note")],
        telemetry=[v2.PipelineTelemetry(**_NUMBERS)],
    ),
    "error": v2.ErrorReport(**_MET, column="note"),
    "question-doctor": v2.Question(id=CORRELATION, topic=v2.QuestionTopic.DOCTOR, name="shop", deadline=LATER),
    "certificate-request": v2.CertificateRequest(
        leaf_key=NODE.public, leaf_tls_key="B" + "A" * 86, leaf_proof="A" * 86
    ),
    "certificate-reply": v2.CertificateReply(certificate=CERTIFICATE),
    "trust-with-authorities": v2.TrustDocument(
        **ADDRESS, name="trust", keys=[SIGNER.public], authorities=[CERTIFICATE]
    ),
    "diagnosis": v2.Diagnosis(
        id=CORRELATION,
        ok=False,
        elapsed_seconds=0.25,
        server_version=180003,
        findings=[
            v2.Finding(
                check=Check.TABLE_IDENTITY, outcome=Outcome.PROBLEM, state=State.IDENTITY_DEFAULT, table="public.orders"
            ),
            v2.Finding(
                check=Check.PIPELINE_SLOT,
                outcome=Outcome.WARNING,
                pipeline="shop-to-warehouse",
                size_bytes=2**33,
                seconds=7200.5,
            ),
            v2.Finding(check=Check.FREE_SLOTS, outcome=Outcome.OK, count=3, count_max=10),
            v2.Finding(check=Check.SERVER_VERSION, outcome=Outcome.OK, version=180003),
            v2.Finding(check=Check.CONNECTS, outcome=Outcome.PROBLEM, code=Code.SOURCE_UNREACHABLE),
        ],
        left_off=1,
    ),
    "report": v2.Report(node="node-1", key=NODE.public, sequence=42, message=v2.ErrorReport(**_MET, column="note")),
}

MESSAGES: dict[int, dict[str, msgspec.Struct]] = {1: MESSAGES_1, 2: MESSAGES_2}


def sealed(contract: int) -> dict[str, bytes]:
    """Return a signed document and a signed report of `contract`, by the name of their golden file."""
    messages = MESSAGES[contract]
    return {
        "signed-pipeline": sign(messages["pipeline"], SIGNER, contract=contract, purpose=Purpose.DOCUMENT),
        "signed-report": sign(messages["report"], NODE, contract=contract, purpose=Purpose.REPORT),
    }


def as_file(message: msgspec.Struct) -> bytes:
    """Return what a golden file holds: the message as it is encoded, indented for people."""
    return msgspec.json.format(msgspec.json.encode(message), indent=2) + b"\n"
