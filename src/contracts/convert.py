"""Between contract versions N and N-1, without ever losing something silently.

Down: `to_v1` returns the older document, or `Lost`, the list of what that version cannot say. A lost transform may be
the mask, so `Lost` is a type of its own that nothing can take for a document; the channel publishes `requires` instead.
Up and on the node: `to_v2` always succeeds, because version 2 says everything that version 1 says.

Called by the channel projection (down), by the consumer of reports (up) and by workers that receive an older document.
"""

from typing import Any

from msgspec import UNSET, Struct, structs

from contracts import v1, v2


class Lost(Struct, frozen=True):
    """What the older contract version cannot express, as paths into the newer document."""

    paths: tuple[str, ...]


def to_v1(document: v2.AnyDocument) -> v1.AnyDocument | Lost:
    """Return `document` as version 1 says it, or what would be lost."""
    if isinstance(document, v2.ConnectionDocument) and not isinstance(document.config, v2.PostgresConfig):
        return Lost(("config.type",))
    if not isinstance(document, v2.PipelineDocument):
        return document
    lost: list[str] = []
    if len(document.transforms) > 1:
        lost.extend(f"transforms[{number}]" for number in range(1, len(document.transforms)))
    lost.extend(_beyond("buffer", document.buffer, v2.BufferSettings(type=document.buffer.type)))
    lost.extend(_beyond("source", document.source, _source_to_v2(_source_to_v1(document.source))))
    lost.extend(_beyond("sink", document.sink, v2.PipelineSink(connection=document.sink.connection)))
    if document.resyncs:
        lost.append("resyncs")
    if document.comparisons:
        lost.append("reconciles")
    if document.partial_copies:
        lost.append("backfills")
    if document.paused_copies:
        lost.append("snapshots_paused")
    if document.signature is not UNSET:
        lost.append("signature")
    if lost:
        return Lost(tuple(lost))
    return v1.PipelineDocument(
        **_common(document, v2.Document),
        run=document.run,
        source=_source_to_v1(document.source),
        sink=v1.PipelineSink(connection=document.sink.connection),
        buffer=document.buffer.type,
        transform=document.transforms[0] if document.transforms else None,
        restarts=document.restarts,
    )


def to_v2(document: v1.AnyDocument | v2.AnyDocument) -> v2.AnyDocument:
    """Return `document` as version 2 says it; one that already is version 2 comes back as it is."""
    if not isinstance(document, v1.PipelineDocument):
        return document
    return v2.PipelineDocument(
        **_common(document, v2.Document),
        run=document.run,
        source=_source_to_v2(document.source),
        sink=v2.PipelineSink(connection=document.sink.connection),
        buffer=v2.BufferSettings(type=document.buffer),
        transforms=[document.transform] if document.transform is not None else [],
        restarts=document.restarts,
    )


def report_to_v2(report: v1.Report | v2.Report) -> v2.Report:
    """Return a report as version 2 says it. Nothing can be lost: version 2 only added fields."""
    if isinstance(report, v2.Report):
        return report
    return v2.Report(node=report.node, key=report.key, sequence=report.sequence, message=_message_to_v2(report.message))


def message_to_v1(message: v2.AnyUp) -> v1.AnyUp:
    """Return a report's message as version 1 says it, for a node pinned to that version.

    Snapshot progress, numbers of slots and dead letters, an error's column and a diagnosis' findings are left out:
    version 1 never had them, and they decide nothing.

    Raises:
        ValueError: it is about something that no document of version 1 asks for.
    """
    match message:
        case v2.PipelineStatus():
            return v1.PipelineStatus(**_common(message, v1.PipelineStatus))
        case v2.ErrorReport():
            return v1.ErrorReport(**_common(message, v1.ErrorReport))
        case v2.Diagnosis():
            return v2.Answer(**_common(message, v2.Answer))
        case v2.Heartbeat():
            fields = structs.asdict(message)
            fields["pipelines"] = [v1.PipelineStatus(**_common(each, v1.PipelineStatus)) for each in message.pipelines]
            told = [v1.PipelineTelemetry(**_common(each, v1.PipelineTelemetry)) for each in message.telemetry]
            fields["telemetry"] = told
            return v1.Heartbeat(**fields)
        case v2.ReconcileStatus():
            raise ValueError("a node of contract version 1 is never asked to reconcile")
        case v2.CertificateRequest():
            raise ValueError("a certificate is asked for in contract version 2 alone")
        case _:
            return message


def _message_to_v2(message: v1.AnyUp) -> v2.AnyUp:
    match message:
        case v1.PipelineStatus():
            return v2.PipelineStatus(**structs.asdict(message))
        case v1.ErrorReport():
            return v2.ErrorReport(**structs.asdict(message))
        case v1.Heartbeat():
            fields = structs.asdict(message)
            fields["pipelines"] = [v2.PipelineStatus(**structs.asdict(each)) for each in message.pipelines]
            fields["telemetry"] = [v2.PipelineTelemetry(**structs.asdict(each)) for each in message.telemetry]
            return v2.Heartbeat(**fields)
        case _:
            return message


def _source_to_v1(source: v2.PipelineSource) -> v1.PipelineSource:
    return v1.PipelineSource(connection=source.connection, tables=source.tables)


def _source_to_v2(source: v1.PipelineSource) -> v2.PipelineSource:
    return v2.PipelineSource(connection=source.connection, tables=source.tables)


def _beyond(place: str, settings: Struct, known: Struct) -> list[str]:
    """Return the paths of the settings that differ from `known`, which is all that the older version says of them."""
    return [
        f"{place}.{field}" for field in settings.__struct_fields__ if getattr(settings, field) != getattr(known, field)
    ]


def _common(value: Struct, shape: type[Struct]) -> dict[str, Any]:
    return {field: getattr(value, field) for field in shape.__struct_fields__}
