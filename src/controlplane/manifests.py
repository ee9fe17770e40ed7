"""What people write, and what they read back: the form of documents on the outside.

`parse_…` takes the bytes of a body and gives a checked value or a `Refused` with code, hint and pointer; what needs to
look at other documents is left to `commands.rules`. `resource` gives the flat JSON that the API answers: what was
written plus read-only fields, so that it can be edited and sent back. Pure; called by commands and the API.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from contracts import v2
from contracts.backfilling import CONDITIONS_MAX, Condition
from contracts.delivery import (
    DEAD_LETTERS_DEFAULT,
    Consistency,
    DeadLettersMax,
    OnRefused,
    OnSchemaChange,
    Parallelism,
)
from contracts.kafka import KafkaConfig, Sasl, TopicSettings
from contracts.names import (
    RESOURCE_NAME_PATTERN,
    SECRET_FORMS,
    SECRET_REFERENCE_PATTERN,
    SECRET_SCHEMES,
    Region,
    ResourceName,
    SecretReference,
    SqlName,
    TableName,
    matches,
)
from contracts.slots import OnFull, RetainBytesMax
from controlplane import conditions
from controlplane.domain import (
    AccessGrant,
    ApiKey,
    Connection,
    DataPlane,
    DataPlaneModel,
    Member,
    Node,
    Pipeline,
    Tenant,
)
from controlplane.domain.aggregate import Aggregate
from controlplane.domain.pipeline import PipelineSpec
from controlplane.refusals import FieldError, Refused, refused_at

READ_ONLY = frozenset({"generation", "revision", "created_at", "updated_at", "status", "warnings", "effects"})
"""Fields of a resource that are ours: taken and passed over when people send them back."""
_ASKED = ("restarts", "resyncs", "reconciles", "backfills", "snapshots_paused")
"""What is asked of a pipeline beside its document, each by a request of its own."""
PIPELINE_READ_ONLY = frozenset({"run", *_ASKED})
DEPTH_MAX = 16
CHANNEL_BYTES_MAX = 48 * 1024
"""The bound on a document, so that it fits a signed message and a sync's answer."""
_SECRET_FIELD = re.compile(
    r"(^|_)(password|passwd|pwd|pass|passphrase|secret|token|api_?key|private_?key|credentials?)(_|$)", re.IGNORECASE
)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@|\bpassword\s*=", re.IGNORECASE)

Parsed = TypeVar("Parsed")


class Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a part of a document that people write is built on."""


class StrictPostgresConfig(v2.PostgresConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach a PostgreSQL database: host, port, database, user, ssl_mode."""


class StrictKafkaConfig(KafkaConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach a Kafka cluster: brokers, ssl_mode, sasl, user."""


class StrictSignature(v2.CustomerSignature, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The customer's own signature, made by `pointsman apply --sign`."""


class _AnyConnection(Strict, frozen=True, kw_only=True):
    """A connection as people write it, without kind and name."""

    secrets: Annotated[dict[SqlName, SecretReference], Meta(max_length=16)] = {}
    signature: StrictSignature | UnsetType = UNSET


class PostgresConnection(_AnyConnection, frozen=True, tag="postgres", tag_field="type", kw_only=True):
    """A connection to a PostgreSQL database, as people write it."""

    config: StrictPostgresConfig


class KafkaConnection(_AnyConnection, frozen=True, tag="kafka", tag_field="type", kw_only=True):
    """A connection to a Kafka cluster, as people write it."""

    config: StrictKafkaConfig


ConnectionManifest = PostgresConnection | KafkaConnection
"""A connection as people write it, without kind and name."""
CONNECTION_FORMS: dict[str, type[PostgresConnection] | type[KafkaConnection]] = {
    "postgres": PostgresConnection,
    "kafka": KafkaConnection,
}


class StrictSourceLog(Strict, frozen=True, omit_defaults=True, kw_only=True):
    """How much of its log the source may keep for the pipeline, and what happens at that limit."""

    retain_bytes_max: RetainBytesMax | None = None
    on_full: OnFull = OnFull.KEEP


class StrictSnapshot(v2.SnapshotSettings, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """How tables are copied."""


class StrictSource(Strict, frozen=True, omit_defaults=True, kw_only=True):
    """Which tables of which connection are captured, and how."""

    connection: ResourceName
    tables: Annotated[list[TableName], Meta(min_length=1, max_length=v2.TABLES_MAX)]
    snapshot: StrictSnapshot = StrictSnapshot()
    log: StrictSourceLog = StrictSourceLog()
    failover: bool = False


class StrictTopics(TopicSettings, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The topics of a destination that is Kafka."""


class StrictSink(Strict, frozen=True, kw_only=True):
    """Where changes are delivered, as what, and what comes of refused rows and of tables whose shape changes."""

    connection: ResourceName
    on_refused: OnRefused = OnRefused.STOP
    dead_letters_max: DeadLettersMax = DEAD_LETTERS_DEFAULT
    on_schema_change: OnSchemaChange = OnSchemaChange.PROPAGATE
    consistency: Consistency = Consistency.TRANSACTION
    parallelism: Parallelism = 1
    topics: StrictTopics | UnsetType = UNSET


CONFIRMING_BUFFER_BYTES_MIN = 64 << 20
"""The part of a table's copy that is one transaction is up to 16 MiB, and transactions of the source may be larger."""


class StrictBuffer(Strict, frozen=True, kw_only=True):
    """What lies between source and sink."""

    type: v2.BufferType = v2.BufferType.DIRECT
    confirm: v2.Confirm = v2.Confirm.SINK
    size_bytes_max: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 1 << 30


class StrictMask(v2.MaskTransform, frozen=True, forbid_unknown_fields=True, tag="mask", tag_field="type", kw_only=True):
    """Replace the values of columns."""


class StrictDrop(v2.DropTransform, frozen=True, forbid_unknown_fields=True, tag="drop", tag_field="type", kw_only=True):
    """Leave columns out."""


class PipelineManifest(Strict, frozen=True, kw_only=True):
    """A pipeline as people write it, without kind and name."""

    data_plane: ResourceName
    source: StrictSource
    sink: StrictSink
    buffer: StrictBuffer = StrictBuffer()
    transforms: Annotated[list[StrictMask | StrictDrop], Meta(max_length=v2.TRANSFORMS_MAX)] = []
    signature: StrictSignature | UnsetType = UNSET


ConditionText = Annotated[
    str,
    Meta(
        min_length=1,
        description="`column op value`; op is one of = != < <= > >= in between, `is null`, `is not null`. A value is a"
        " literal, between single quotes where it has to be: `state in (new, 'on hold')`.",
    ),
]


class TablesRequest(Strict, frozen=True, kw_only=True):
    """Which tables are meant; without `tables` it is about the pipeline as a whole."""

    tables: Annotated[list[TableName], Meta(min_length=1, max_length=v2.TABLES_MAX)] | None = None


class ResyncRequest(Strict, frozen=True, kw_only=True):
    """Which tables are to be copied again; without `tables` all that the pipeline captures.

    With `where` only the rows of one table that match all of its conditions.
    """

    tables: Annotated[list[TableName], Meta(min_length=1, max_length=v2.TABLES_MAX)] | None = None
    where: Annotated[list[ConditionText], Meta(min_length=1, max_length=CONDITIONS_MAX)] | None = None


class Resync(NamedTuple):
    """What a resync asks for: whole tables (None: all of them), or the rows of one that match `where`."""

    tables: list[str] | None
    where: tuple[Condition, ...] = ()


class ReconcileRequest(Strict, frozen=True, kw_only=True):
    """Which tables' two ends are to be compared (without `tables` all), and whether the destination is to be mended."""

    tables: Annotated[list[TableName], Meta(min_length=1, max_length=v2.TABLES_MAX)] | None = None
    repair: bool = False


class DataPlaneManifest(Strict, frozen=True, kw_only=True):
    """A data plane as people write it, without kind and name."""

    model: DataPlaneModel = DataPlaneModel.SELF_MANAGED
    region: Region | UnsetType = UNSET


def check_name(name: str, pointer: str = "/name") -> str:
    """Return `name` if a resource may be called so.

    Raises:
        Refused: invalid_name.
    """
    if not matches(RESOURCE_NAME_PATTERN, name):
        raise refused_at("invalid_name", pointer, "not a resource name")
    return name


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; an empty body is an empty object.

    Raises:
        Refused: malformed_json, or invalid_document if it is JSON but no object or nested too deeply.
    """
    if not body.strip():
        return {}
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("malformed_json", "The body cannot be read as JSON.") from error
    if not isinstance(value, dict):
        raise refused_at("invalid_document", "", "a JSON object is expected")
    _check_plain(value, "", DEPTH_MAX)
    return value


def check_empty(fields: dict[str, Any]) -> None:
    """Refuse fields where none are taken.

    Raises:
        Refused: unknown_field.
    """
    for field in fields:
        raise refused_at("unknown_field", f"/{_escaped(field)}", "this request takes no fields")


def parse_connection(
    name: str, body: bytes
) -> tuple[str, v2.SystemConfig, dict[str, str], v2.CustomerSignature | UnsetType]:
    """Return type, configuration and secret references of a connection, and the customer's signature if it has one.

    Raises:
        Refused: malformed_json, invalid_name, secret_in_plain_text, unknown_type, unknown_field or invalid_document.
    """
    fields = _own_fields(parse_object(body), "Connection", name)
    _refuse_plain_secrets(fields)
    type_ = fields.get("type")
    if type_ is None:
        raise refused_at("invalid_document", "/type", "is missing")
    if type_ not in CONNECTION_FORMS:
        raise refused_at("unknown_type", "/type", f"not a connection's type; there are {', '.join(CONNECTION_FORMS)}")
    config = fields.get("config")
    if isinstance(config, dict) and "type" in config:
        raise refused_at("unknown_field", "/config/type", "the type is written beside config, not in it")
    manifest = convert(fields, CONNECTION_FORMS[type_])
    if isinstance(manifest, KafkaConnection):
        _check_sasl(manifest)
    plain = msgspec.convert(msgspec.to_builtins(manifest.config), v2.SystemConfig)
    if manifest.signature is UNSET:
        return type_, plain, manifest.secrets, UNSET
    return (
        type_,
        plain,
        manifest.secrets,
        msgspec.convert(msgspec.to_builtins(manifest.signature), v2.CustomerSignature),
    )


def parse_pipeline(name: str, body: bytes) -> PipelineSpec:
    """Return what is asked of a pipeline.

    Raises:
        Refused: malformed_json, invalid_name, unknown_type, unknown_field, secret_in_plain_text, invalid_document or
            too_large_for_the_channel.
    """
    fields = _own_fields(parse_object(body), "Pipeline", name)
    _refuse_plain_secrets(fields)
    _check_types(fields)
    manifest = convert(fields, PipelineManifest)
    _check_pipeline(manifest)
    spec = msgspec.convert(msgspec.to_builtins(manifest), PipelineSpec)
    check_size(spec)
    return spec


def check_size(spec: PipelineSpec, *asked: Mapping[str, object] | Sequence[str]) -> None:
    """Refuse a pipeline whose document, with what was `asked` of its tables, would not fit a message.

    Raises:
        Refused: too_large_for_the_channel.
    """
    if len(msgspec.json.encode((spec, asked))) > CHANNEL_BYTES_MAX:
        raise Refused("too_large_for_the_channel", f"The document may have {CHANNEL_BYTES_MAX} bytes.")


def parse_tables(body: bytes) -> list[str] | None:
    """Return the tables that an act is about; None when it names none and is about the pipeline.

    Raises:
        Refused: malformed_json, unknown_field or invalid_document.
    """
    tables = convert(parse_object(body), TablesRequest).tables
    if tables is not None:
        _check_unlike(tables, "/tables")
    return tables


def parse_resync(body: bytes) -> Resync:
    """Return what a resync asks for.

    Raises:
        Refused: malformed_json, unknown_field, invalid_document or invalid_condition.
    """
    asked = convert(parse_object(body), ResyncRequest)
    if asked.tables is not None:
        _check_unlike(asked.tables, "/tables")
    if asked.where is None:
        return Resync(asked.tables)
    if asked.tables is None or len(asked.tables) != 1:
        raise refused_at("invalid_document", "/tables", "with conditions exactly one table is named")
    return Resync(asked.tables, conditions.parse(asked.where))


def parse_reconcile(body: bytes) -> ReconcileRequest:
    """Return which tables are to be compared (None: all), and whether they are to be mended.

    Raises:
        Refused: malformed_json, unknown_field or invalid_document.
    """
    asked = convert(parse_object(body), ReconcileRequest)
    if asked.tables is not None:
        _check_unlike(asked.tables, "/tables")
    return asked


def parse_data_plane(name: str, body: bytes) -> DataPlaneManifest:
    """Return what is asked of a data plane.

    Raises:
        Refused: malformed_json, invalid_name, unknown_field or invalid_document.
    """
    return convert(_own_fields(parse_object(body), "DataPlane", name), DataPlaneManifest)


def convert(fields: dict[str, Any], form: type[Parsed]) -> Parsed:
    """Return `fields` as a `form`.

    Raises:
        Refused: unknown_field or invalid_document, with the pointer to what is wrong and without its value.
    """
    try:
        return msgspec.convert(fields, form)
    except msgspec.ValidationError as error:
        raise _refusal_of(str(error)) from None


def resource(aggregate: Aggregate, revision: int) -> dict[str, Any]:
    """Return the flat JSON of a resource, but for its status."""
    shown: dict[str, Any] = {"kind": aggregate.KIND, "name": aggregate.name}
    shown.update(_written(aggregate))
    shown["generation"] = getattr(aggregate, "generation", aggregate.version)
    shown["revision"] = revision
    shown["created_at"] = aggregate.created_at
    shown["updated_at"] = aggregate.updated_at
    builtins: dict[str, Any] = msgspec.to_builtins(shown)
    return builtins


def _written(aggregate: Aggregate) -> dict[str, Any]:
    match aggregate:
        case Connection(config=config) if config is not None:
            written = msgspec.to_builtins(config)
            secrets = dict(sorted(aggregate.secrets.items()))
            signed = {} if aggregate.signature is UNSET else {"signature": msgspec.to_builtins(aggregate.signature)}
            return {"type": written.pop("type"), "config": written, "secrets": secrets, **signed}
        case Pipeline(spec=spec) if spec is not None:
            shown: dict[str, Any] = msgspec.to_builtins(spec)
            asked = {each: getattr(aggregate, each) for each in _ASKED}
            return {**shown, "run": aggregate.run.value, **asked}
        case DataPlane():
            place = {} if aggregate.region is UNSET else {"region": aggregate.region}
            return {"model": aggregate.model.value, **place}
        case Node():
            return {"data_plane": aggregate.data_plane, "key": aggregate.key, "contract": aggregate.contract}
        case ApiKey():
            return {
                "id": aggregate.name,
                "name": aggregate.label,
                "role": aggregate.role,
                "expires_at": aggregate.expires_at,
                "member": aggregate.member or None,
                "read_only": aggregate.read_only,
            }
        case Member():
            return {"role": aggregate.role}
        case AccessGrant():
            return {"expires_at": aggregate.expires_at, "uses": aggregate.uses}
        case Tenant():
            return {"tenant": aggregate.tenant}
        case _:
            return {}


def _own_fields(fields: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    """Return the fields without those that only address the resource or are read-only."""
    check_name(name)
    if fields.get("kind", kind) != kind:
        raise refused_at("invalid_document", "/kind", f"{kind} is expected at this address")
    if fields.get("name", name) != name:
        raise refused_at("invalid_document", "/name", "is not the name in the address")
    passed_over = READ_ONLY | {"kind", "name"} | (PIPELINE_READ_ONLY if kind == "Pipeline" else set())
    return {field: value for field, value in fields.items() if field not in passed_over}


def _check_plain(value: Any, pointer: str, depth: int) -> None:
    """Refuse what no store or message can hold: NUL characters and endless nesting."""
    if depth == 0:
        raise refused_at("invalid_document", pointer, "is nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            if "\x00" in key:
                raise refused_at("invalid_document", pointer, "a field's name holds a NUL character")
            _check_plain(inner, f"{pointer}/{_escaped(key)}", depth - 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_plain(inner, f"{pointer}/{number}", depth - 1)
    elif isinstance(value, str) and "\x00" in value:
        raise refused_at("invalid_document", pointer, "holds a NUL character")


def _refuse_plain_secrets(fields: dict[str, Any]) -> None:
    """Refuse a secret's value wherever it may have been written. The refusal never quotes it."""
    secrets = fields.get("secrets")
    if isinstance(secrets, dict):
        for name, value in secrets.items():
            _refuse_unless_reference(f"/secrets/{_escaped(name)}", value)
    for place, inner in fields.items():
        if place == "secrets":
            continue
        for pointer, key, value in _strings(inner, f"/{_escaped(place)}", place):
            if place == "transforms" and key == "secret":
                _refuse_unless_reference(pointer, value)
            elif _SECRET_FIELD.search(key) or _URL_WITH_PASSWORD.search(value):
                raise refused_at("secret_in_plain_text", pointer, "looks like a secret; write a reference in `secrets`")


def _refuse_unless_reference(pointer: str, value: Any) -> None:
    if not isinstance(value, str):
        raise refused_at("invalid_document", pointer, f"a reference is expected: {SECRET_FORMS}")
    if matches(SECRET_REFERENCE_PATTERN, value):
        return
    if value.startswith(SECRET_SCHEMES):
        raise refused_at(
            "invalid_document",
            pointer,
            f"not a reference that a node can resolve: {SECRET_FORMS}",
        )
    raise refused_at("secret_in_plain_text", pointer, f"is not a reference: write {SECRET_FORMS}")


def _strings(value: Any, pointer: str, key: str) -> Iterator[tuple[str, str, str]]:
    """Yield (pointer, nearest field's name, text) of every text in a document."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, f"{pointer}/{_escaped(name)}", name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _strings(inner, f"{pointer}/{number}", key)
    elif isinstance(value, str):
        yield pointer, key, value


def _check_sasl(manifest: KafkaConnection) -> None:
    config = manifest.config
    if config.sasl is Sasl.NONE:
        if config.user is not None:
            raise refused_at("invalid_document", "/config/user", "only SASL has one: set `sasl`")
    elif config.user is None:
        raise refused_at("invalid_document", "/config/user", "is needed for SASL")
    elif "password" not in manifest.secrets:
        raise refused_at("invalid_document", "/secrets/password", "is needed for SASL")


def _check_types(fields: dict[str, Any]) -> None:
    """Give an unknown type its own code before the form is checked."""
    buffer = fields.get("buffer")
    buffers = [each.value for each in v2.BufferType]
    if isinstance(buffer, dict) and buffer.get("type", buffers[0]) not in buffers:
        raise refused_at("unknown_type", "/buffer/type", f"not a buffer's type; there are {', '.join(buffers)}")
    transforms = fields.get("transforms")
    for number, transform in enumerate(transforms if isinstance(transforms, list) else []):
        if isinstance(transform, dict) and transform.get("type") not in ("mask", "drop"):
            raise refused_at(
                "unknown_type", f"/transforms/{number}/type", "not a transform's type; there are mask, drop"
            )


def _check_pipeline(manifest: PipelineManifest) -> None:
    """Check what one pipeline's document must satisfy by itself."""
    tables = _check_unlike(manifest.source.tables, "/source/tables")
    log = manifest.source.log
    if log.on_full is OnFull.STOP and log.retain_bytes_max is None:
        raise refused_at("invalid_document", "/source/log/retain_bytes_max", "is needed for on_full: stop")
    _check_buffer(manifest.buffer)
    if manifest.sink.parallelism > 1 and manifest.sink.consistency is not Consistency.KEY:
        raise refused_at(
            "invalid_document",
            "/sink/parallelism",
            "more than one connection cannot show whole transactions: set consistency: key, or leave parallelism at 1",
        )
    for number, transform in enumerate(manifest.transforms):
        pointer = f"/transforms/{number}"
        if transform.table not in tables:
            raise refused_at("invalid_document", f"{pointer}/table", "is not one of the source's tables")
        if len(set(transform.columns)) != len(transform.columns):
            raise refused_at("invalid_document", f"{pointer}/columns", "a column is named twice")
        if isinstance(transform, StrictMask):
            needs = transform.method is v2.MaskMethod.HASH
            if needs and transform.secret is None:
                raise refused_at("invalid_document", f"{pointer}/secret", "is needed for the method hash")
            if not needs and transform.secret is not None:
                raise refused_at("invalid_document", f"{pointer}/secret", "only the method hash has one")


def _check_buffer(buffer: StrictBuffer) -> None:
    if buffer.confirm is v2.Confirm.SINK:
        return
    if buffer.type is v2.BufferType.DIRECT:
        raise refused_at("invalid_document", "/buffer/confirm", "there is no buffer that could confirm: use jetstream")
    if buffer.size_bytes_max < CONFIRMING_BUFFER_BYTES_MIN:
        raise refused_at(
            "invalid_document",
            "/buffer/size_bytes_max",
            f"is at least {CONFIRMING_BUFFER_BYTES_MIN} with confirm: buffer, which holds each transaction whole",
        )


def _check_unlike(tables: Sequence[str], pointer: str) -> set[str]:
    """Refuse a list that names a table twice."""
    seen: set[str] = set()
    for number, table in enumerate(tables):
        if table in seen:
            raise refused_at("invalid_document", f"{pointer}/{number}", "is named twice")
        seen.add(table)
    return seen


_AT = re.compile(r" - at `(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`$")
_QUOTED = re.compile(r"'[^']*'")


def _refusal_of(text: str) -> Refused:
    """Turn msgspec's message into a refusal. Its values are cut out: one of them may be a secret in the wrong place."""
    at = _AT.search(text)
    pointer = _pointer(at["path"]) if at else ""
    message = text[: at.start()] if at else text
    if unknown := _UNKNOWN.match(message):
        return refused_at("unknown_field", f"{pointer}/{_escaped(unknown['field'])}", "there is no such field")
    if missing := _MISSING.match(message):
        return refused_at("invalid_document", f"{pointer}/{_escaped(missing['field'])}", "is missing")
    message = _QUOTED.sub("this value", message)
    message = re.sub(r"matching regex .*", "of the form that the schema gives", message)
    error = FieldError(pointer, message)
    return Refused("invalid_document", f"{pointer or 'The document'}: {message}", errors=(error,))


def _pointer(path: str) -> str:
    """Turn `$.source.tables[0]` into `/source/tables/0`. A dictionary's key shows as `[...]`, which stays unnamed."""
    parts = re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path)
    return "".join(f"/{_escaped(field or number)}" for field, number in parts if number != "...")


def _escaped(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1")[:128]
