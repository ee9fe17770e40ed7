"""Between the two versions of the contract, nothing is lost without a word."""

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from tests.contracts.examples import MESSAGES, MESSAGES_2
from tests.contracts.strategies import values_of

from contracts import v1, v2
from contracts.convert import Lost, message_to_v1, report_to_v2, to_v1, to_v2
from contracts.envelope import decode_report
from contracts.kafka import KafkaConfig
from contracts.reconciling import Reconcile
from contracts.slots import OnFull, SourceLog

PIPELINE = MESSAGES_2["pipeline"]
# What version 1 never had. All else of a message must arrive.
ONLY_IN_2 = {
    "column",
    "tables_total",
    "tables_copied",
    "dead_letters",
    "dead_letters_total",
    "columns_ignored",
    "undecodable_values_total",
    "snapshot_rows",
    "snapshot_rows_estimated",
    "snapshot_bytes",
    "snapshot_seconds_left",
    "slot",
    "copies",
    "policy",
}


@given(values_of(v2.PipelineDocument))
def test_a_pipeline_says_the_same_in_version_1_or_names_what_would_be_lost(document: v2.PipelineDocument) -> None:
    """Going down to version 1 and back gives the same document, unless the answer is the list of losses."""
    older = to_v1(document)
    if isinstance(older, Lost):
        assert older.paths
        return
    assert to_v2(older) == document


@given(values_of(v2.PipelineDocument))
def test_a_transform_never_vanishes(document: v2.PipelineDocument) -> None:
    """A second transform is a named loss; a first one is there, word for word."""
    older = to_v1(document)
    beyond_the_first = [f"transforms[{number}]" for number in range(1, len(document.transforms))]
    if isinstance(older, Lost):
        assert [path for path in older.paths if path.startswith("transforms")] == beyond_the_first
    else:
        assert beyond_the_first == []
        assert isinstance(older, v1.PipelineDocument)
        assert [older.transform] == (document.transforms or [None])


def test_a_comparison_never_vanishes_on_its_way_to_an_older_node() -> None:
    """An older node cannot compare, so it gets no document that asks for it; and nothing it says is lost by it."""
    plain = msgspec.structs.replace(PIPELINE, transforms=[], buffer=v2.BufferSettings(), resyncs={})
    asked = msgspec.structs.replace(plain, reconciles={"public.orders": Reconcile(number=1)})
    assert to_v1(asked) == Lost(("reconciles",))
    with pytest.raises(ValueError, match="reconcile"):
        message_to_v1(MESSAGES[2]["reconcile-status"])  # type: ignore[arg-type]


def test_a_resync_never_vanishes() -> None:
    """An older node would go on as if nobody had asked; it keeps what it runs instead, and says that it needs an upgrade."""
    assert isinstance(PIPELINE, v2.PipelineDocument)
    plain = msgspec.structs.replace(PIPELINE, transforms=[], buffer=v2.BufferSettings(), resyncs={})
    assert isinstance(to_v1(plain), v1.PipelineDocument)
    assert to_v1(msgspec.structs.replace(plain, resyncs={"public.orders": 1})) == Lost(("resyncs",))


def test_what_is_asked_of_single_copies_never_vanishes() -> None:
    """An older node would copy what is paused, and nothing of what was asked for."""
    assert isinstance(PIPELINE, v2.PipelineDocument)
    plain = msgspec.structs.replace(PIPELINE, transforms=[], buffer=v2.BufferSettings(), resyncs={})
    asked = MESSAGES_2["pipeline-with-backfills"]
    assert isinstance(asked, v2.PipelineDocument)
    both = msgspec.structs.replace(plain, backfills=asked.backfills, snapshots_paused=asked.snapshots_paused)
    assert to_v1(both) == Lost(("backfills", "snapshots_paused"))


def test_a_policy_for_refused_rows_never_vanishes() -> None:
    """An older node would stop, or add columns, where somebody asked for something else."""
    assert isinstance(PIPELINE, v2.PipelineDocument)
    plain = msgspec.structs.replace(PIPELINE, transforms=[], buffer=v2.BufferSettings(), resyncs={})
    sink = msgspec.structs.replace(
        plain.sink, on_refused=v2.OnRefused.DEAD_LETTER, on_schema_change=v2.OnSchemaChange.IGNORE
    )
    older = to_v1(msgspec.structs.replace(plain, sink=sink))
    assert older == Lost(("sink.on_refused", "sink.on_schema_change"))


def test_lanes_never_become_one_connection_without_a_word() -> None:
    """An older node would know nothing of what some lanes have already: it must not go on where they stopped."""
    assert isinstance(PIPELINE, v2.PipelineDocument)
    plain = msgspec.structs.replace(PIPELINE, transforms=[], buffer=v2.BufferSettings(), resyncs={})
    sink = msgspec.structs.replace(plain.sink, consistency=v2.Consistency.KEY, parallelism=4)
    assert to_v1(msgspec.structs.replace(plain, sink=sink)) == Lost(("sink.consistency", "sink.parallelism"))


def test_a_buffer_that_is_data_never_becomes_a_cache() -> None:
    """An older node would empty it."""
    assert isinstance(PIPELINE, v2.PipelineDocument)
    buffer = v2.BufferSettings(type=v2.BufferType.JETSTREAM, confirm=v2.Confirm.BUFFER)
    kept = msgspec.structs.replace(PIPELINE, transforms=[], buffer=buffer, resyncs={})
    assert to_v1(kept) == Lost(("buffer.confirm",))


def test_what_is_asked_of_the_source_never_vanishes() -> None:
    """An older node would let the source's disk fill up, or lose its place at a failover."""
    assert isinstance(PIPELINE, v2.PipelineDocument)
    plain = msgspec.structs.replace(PIPELINE, transforms=[], buffer=v2.BufferSettings(), resyncs={})
    log = SourceLog(retain_bytes_max=1 << 30, on_full=OnFull.STOP)
    source = msgspec.structs.replace(plain.source, log=log, failover=True)
    assert to_v1(msgspec.structs.replace(plain, source=source)) == Lost(("source.log", "source.failover"))


def test_what_is_lost_cannot_be_taken_for_a_document() -> None:
    """The list of losses has none of a document's fields, and no version decodes it as one."""
    lost = to_v1(PIPELINE)
    assert lost == Lost(("transforms[1]", "buffer.size_bytes_max", "resyncs"))
    assert not set(Lost.__struct_fields__) & set(v1.PipelineDocument.__struct_fields__)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(lost), type=v1.AnyDocument)


@given(values_of(v1.PipelineDocument))
def test_version_2_says_everything_that_version_1_says(document: v1.PipelineDocument) -> None:
    """From version 1 to 2 and back is the identity."""
    newer = to_v2(document)
    assert isinstance(newer, v2.PipelineDocument)
    assert to_v1(newer) == document


@given(values_of(v2.ConnectionDocument | v2.TrustDocument | v2.RequiresDocument | v2.IndexDocument))
def test_the_other_documents_are_the_same_in_both_versions(document: v2.AnyDocument) -> None:
    """Connections, trust lists, indexes and stand-ins need no conversion, but for systems that version 1 does not know."""
    if isinstance(document, v2.ConnectionDocument) and isinstance(document.config, KafkaConfig):
        assert to_v1(document) == Lost(("config.type",))
    else:
        assert to_v1(document) == document
    assert to_v2(document) == document


@given(values_of(v2.Diagnosis))
def test_a_diagnosis_is_an_answer_in_version_1(message: v2.Diagnosis) -> None:
    """A node pinned to version 1 says whether the connection works; findings are news of version 2."""
    sent = v1.Report(node="node-1", key="U" + "A" * 55, sequence=1, message=message_to_v1(message))
    received = report_to_v2(decode_report(msgspec.json.encode(sent), 1)).message
    assert received == v2.Answer(**{name: getattr(message, name) for name in v2.Answer.__struct_fields__})


_OTHERS = v2.Diagnosis | v2.ReconcileStatus | v2.CertificateRequest


def test_a_certificate_is_asked_for_in_version_2_alone() -> None:
    """Version 1 has no such message: a node that is pinned to it asks in version 2 all the same."""
    with pytest.raises(ValueError, match="contract version 2 alone"):
        message_to_v1(v2.CertificateRequest(leaf_key="U" + "A" * 55, leaf_tls_key="B" + "A" * 86, leaf_proof="A" * 86))


@given(values_of(v2.AnyUp).filter(lambda message: not isinstance(message, _OTHERS)))
def test_a_report_of_version_2_reads_in_version_1_and_comes_back(message: v2.AnyUp) -> None:
    """A node pinned to version 1 can report everything; only what that version never had is absent."""
    sent = v1.Report(node="node-1", key="U" + "A" * 55, sequence=1, message=message_to_v1(message))
    received = decode_report(msgspec.json.encode(sent), 1)
    back = report_to_v2(received).message
    assert type(back) is type(message)
    assert _without_news(back) == _without_news(message)


@given(values_of(v1.AnyUp))
def test_a_report_of_version_1_loses_nothing_in_version_2(message: v1.AnyUp) -> None:
    """The control plane works with version 2 only; an older node's report arrives whole."""
    report = v1.Report(node="node-1", key="U" + "A" * 55, sequence=1, message=message)
    newer = report_to_v2(report)
    assert decode_report(msgspec.json.encode(newer), 2) == newer
    assert message_to_v1(newer.message) == message


def test_no_field_of_version_1_is_missing_in_version_2() -> None:
    """Version 2 of a report's message has every field that version 1 has."""
    for older, newer in (
        (v1.PipelineStatus, v2.PipelineStatus),
        (v1.ErrorReport, v2.ErrorReport),
        (v1.Heartbeat, v2.Heartbeat),
    ):
        assert set(newer.__struct_fields__) - set(older.__struct_fields__) <= ONLY_IN_2
        assert set(older.__struct_fields__) <= set(newer.__struct_fields__)


def test_a_report_of_version_2_stays_as_it_is() -> None:
    """Converting to the version that it already has changes nothing."""
    status = v2.PipelineStatus(
        pipeline="p",
        epoch=1,
        observed_generation=1,
        phase=v2.Phase.SNAPSHOTTING,
        since=datetime(2026, 1, 1, tzinfo=UTC),
        tables_total=2,
        tables_copied=1,
    )
    report = v2.Report(node="node-1", key="U" + "A" * 55, sequence=9, message=status)
    assert report_to_v2(report) is report


def _without_news(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_news(each) for key, each in value.items() if key not in ONLY_IN_2}
    if isinstance(value, list | tuple):
        return [_without_news(each) for each in value]
    return _without_news(msgspec.structs.asdict(value)) if isinstance(value, msgspec.Struct) else value
