"""The customer's policy: what this node may read, write, reveal and do, whatever a control plane asks.

The policy is a file, `policy.toml` in the node's folder, that only the customer writes; nothing that arrives over the channel
can change it. In flow the policy and documents; out flow violations. The agent asks before it runs a pipeline or answers a
question, and a worker asks for every table's columns before a row of them leaves the node. Pure, but for `load`.

What no rule allows is refused. A node without a policy file runs nothing.

    [[source]]                              # may be read
    hosts = ["db.internal", "10.1.0.0/16", "*.rds.internal"]
    ports = [5432]                          # left out: any
    databases = ["shop"]                    # left out: any; Kafka has none
    tables = ["public.*", "sales.orders"]   # left out: any
    tls = true                              # left out: false; true asks for verify-full

    [[destination]]                         # may be written; the same fields

    [[mask]]                                # columns that may only leave so
    tables = ["*"]                          # left out: any
    columns = ["email", "*_ssn"]
    methods = ["hash", "drop"]              # left out: any of redact, hash, drop

    [secrets]
    allowed = ["file:shop_*", "env:SHOP_*"]

    [documents]
    signed_by = ["UABC…"]                   # left out: nobody has to sign; with it, one of these keys must have
    signed_after = 2026-01-31T12:00:00Z     # left out: at any time

    [allow]                                 # what a control plane may ask for beside running
    remove = true                           # drop slot, publication and checkpoint
    resync = true                           # copy tables again, or mend rows
    questions = true                        # connection tests and the doctor
    jetstream = true                        # rows may lie in the leaf's buffer
"""

import hashlib
import ipaddress
import stat
import tomllib
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from contracts.codes import Code
from contracts.names import PublicKey
from contracts.v2 import (
    BufferType,
    ConnectionDocument,
    DropTransform,
    MaskMethod,
    MaskTransform,
    PipelineDocument,
    PostgresConfig,
    RunState,
    SystemConfig,
)

FILE_NAME = "policy.toml"
POLICY_BYTES_MAX = 256 << 10
RULES_MAX = 200

_Pattern = Annotated[str, Meta(min_length=1, max_length=253)]
_Patterns = Annotated[list[_Pattern], Meta(min_length=1, max_length=1000)]
VERIFIED_TLS = "verify-full"


class MaskWay(Enum):
    """How a column may leave the node that may not leave as it is."""

    REDACT = "redact"
    HASH = "hash"
    DROP = "drop"
    """Left out."""


class EndpointRule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Databases that may be reached, and their tables. Hosts are names, `*.suffix`, or networks; tables `schema.table`."""

    hosts: _Patterns
    ports: Annotated[list[Annotated[int, Meta(ge=1, le=65535)]], Meta(max_length=100)] = []
    databases: Annotated[list[_Pattern], Meta(max_length=1000)] = []
    tables: Annotated[list[_Pattern], Meta(max_length=1000)] = []
    tls: bool = False


class MaskRule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Columns that may only leave in one of these ways."""

    columns: _Patterns
    tables: Annotated[list[_Pattern], Meta(max_length=1000)] = []
    methods: Annotated[tuple[MaskWay, ...], Meta(min_length=1)] = tuple(MaskWay)


class SecretRules(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which references a document may hold."""

    allowed: Annotated[list[_Pattern], Meta(max_length=1000)] = []


class DocumentRules(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose signature pipelines and connections need beside the control plane's; `node.signatures` holds them to it."""

    signed_by: Annotated[list[PublicKey], Meta(max_length=32)] = []
    """Public keys of the customer's. Empty: no such signature is asked for."""
    signed_after: Annotated[datetime, Meta(tz=True)] | None = None
    """Signatures from before this moment do not count, also on a node that never saw a newer one."""


class Allowances(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a control plane may ask for beside running pipelines."""

    remove: bool = False
    resync: bool = False
    questions: bool = False
    jetstream: bool = False


class Policy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file as a whole. Without any rule it refuses everything."""

    source: Annotated[list[EndpointRule], Meta(max_length=RULES_MAX)] = []
    destination: Annotated[list[EndpointRule], Meta(max_length=RULES_MAX)] = []
    mask: Annotated[list[MaskRule], Meta(max_length=RULES_MAX)] = []
    secrets: SecretRules = SecretRules()
    documents: DocumentRules = DocumentRules()
    allow: Allowances = Allowances()


class Violation(Struct, frozen=True, kw_only=True):
    """One thing that the policy does not allow. `what` is for the customer's eyes; only code, table and column go up."""

    code: Code
    what: str
    table: str | None = None
    column: str | None = None


class PolicyInvalid(Exception):
    """The file is missing, not what a policy looks like, or can be changed by others. Everything is refused."""


def load(folder: Path) -> Policy:
    """Read the policy of the node that lives in `folder`.

    Raises:
        PolicyInvalid: as it says. The text is for the node's own log.
    """
    path = folder / FILE_NAME
    try:
        status = path.stat()
        if status.st_mode & stat.S_IWOTH:
            raise PolicyInvalid(f"{path} can be changed by anyone; run `chmod o-w` on it")
        if status.st_size > POLICY_BYTES_MAX:
            raise PolicyInvalid(f"{path} is larger than {POLICY_BYTES_MAX} bytes")
        return parse(path.read_text())
    except FileNotFoundError:
        raise PolicyInvalid(f"there is no {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyInvalid(f"{path} cannot be read: {error}") from error


def digest_of(folder: Path) -> str | None:
    """Return the SHA-256 in hex of the policy's file, byte for byte; None if it cannot be read."""
    try:
        with (folder / FILE_NAME).open("rb") as file:
            return hashlib.sha256(file.read(POLICY_BYTES_MAX)).hexdigest()
    except OSError:
        return None


class PolicyFile:
    """The policy of one node, read again whenever its file has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[int, ...] | None = None
        self._read: Policy | PolicyInvalid = PolicyInvalid("not read yet")
        self.digest: str | None = None
        """Of the file as it was when it was read."""

    def current(self) -> Policy | PolicyInvalid:
        """Return the policy as it is now, or why there is none."""
        seen = self._look()
        if seen != self._seen or seen is None:
            self._seen, self.digest = seen, digest_of(self._folder)
            try:
                self._read = load(self._folder)
            except PolicyInvalid as invalid:
                self._read = invalid
        return self._read

    def _look(self) -> tuple[int, ...] | None:
        try:
            status = (self._folder / FILE_NAME).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


def parse(text: str) -> Policy:
    """Return the policy that a file's text says.

    Raises:
        PolicyInvalid: it is not TOML, or has a field or a value that does not exist.
    """
    try:
        return msgspec.convert(tomllib.loads(text), Policy)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise PolicyInvalid(f"the policy is not valid: {error}") from error


def judge(
    policy: Policy, document: PipelineDocument, source: ConnectionDocument, sink: ConnectionDocument
) -> list[Violation]:
    """Return everything in a pipeline's document and its connections that the policy does not allow."""
    found = [
        *_endpoint(policy.source, source, document.source.tables, Code.POLICY_SOURCE_REFUSED),
        *_endpoint(policy.destination, sink, document.source.tables, Code.POLICY_DESTINATION_REFUSED),
        *_secrets(policy, document, source, sink),
        *_asked(policy.allow, document),
        *_probing(policy.mask, document),
    ]
    for transform in document.transforms:
        # What a document names can be judged before a single column was seen.
        if isinstance(transform, MaskTransform):
            named = [(transform.table, column) for column in transform.columns]
            found.extend(unmasked(policy.mask, document, named))
    return found


def judge_connection(policy: Policy, connection: ConnectionDocument) -> list[Violation]:
    """Return why the node may not even ask the server of `connection` how it is; nothing if it may."""
    if not policy.allow.questions:
        return [Violation(code=Code.POLICY_ACTION_REFUSED, what="[allow] has not `questions = true`")]
    rules = (*policy.source, *policy.destination)
    for address in _addresses(connection.config):
        if not any(_reaches(rule, address) for rule in rules):
            return [Violation(code=Code.POLICY_SOURCE_REFUSED, what=f"no rule allows {address}")]
    return _refused_secrets(policy, connection.secrets.values())


def unmasked(
    rules: Sequence[MaskRule], document: PipelineDocument, columns: Sequence[tuple[str, str]]
) -> list[Violation]:
    """Return which of `columns` (table and column, as they are about to leave) the rules do not let leave so."""
    ways = _ways(document)
    found = []
    for table, column in columns:
        for rule in rules:
            if not _matches(rule.tables, table) or not _matches(rule.columns, column):
                continue
            if ways.get((table, column)) not in rule.methods:
                allowed = ", ".join(way.value for way in rule.methods)
                what = f"column {column} of {table} may only leave by: {allowed}"
                found.append(Violation(code=Code.POLICY_MASK_MISSING, what=what, table=table, column=column))
                break
    return found


def _ways(document: PipelineDocument) -> dict[tuple[str, str], MaskWay]:
    """Return what the document's transforms make of columns in the end."""
    ways: dict[tuple[str, str], MaskWay] = {}
    for transform in document.transforms:
        for column in transform.columns:
            if isinstance(transform, DropTransform):
                ways[transform.table, column] = MaskWay.DROP
            elif (transform.table, column) not in ways:
                hashed = transform.method is MaskMethod.HASH
                ways[transform.table, column] = MaskWay.HASH if hashed else MaskWay.REDACT
    return ways


def _endpoint(
    rules: Sequence[EndpointRule], connection: ConnectionDocument, tables: Sequence[str], code: Code
) -> list[Violation]:
    found: list[Violation] = []
    for address in _addresses(connection.config):
        reaching = [rule for rule in rules if _reaches(rule, address)]
        if not reaching:
            found.append(Violation(code=code, what=f"no rule allows {address}"))
            continue
        found += [
            Violation(code=code, what=f"no rule for {address} allows table {table}", table=table)
            for table in tables
            if not any(_matches(rule.tables, table) for rule in reaching)
        ]
    return found


class _Address(NamedTuple):
    """One server that a connection leads to. A system without databases has an empty one."""

    host: str
    port: int
    database: str
    ssl_mode: str

    def __str__(self) -> str:
        database = f"/{self.database}" if self.database else ""
        return f"{self.host}:{self.port}{database} with ssl_mode {self.ssl_mode}"


def _addresses(config: SystemConfig) -> list[_Address]:
    if isinstance(config, PostgresConfig):
        return [_Address(config.host, config.port, config.database, config.ssl_mode)]
    brokers = [each.rpartition(":") for each in config.brokers]
    return [_Address(host, int(port), "", config.ssl_mode) for host, _, port in brokers]


def _reaches(rule: EndpointRule, address: _Address) -> bool:
    return (
        any(_is_host(pattern, address.host) for pattern in rule.hosts)
        and (not rule.ports or address.port in rule.ports)
        and _matches(rule.databases, address.database)
        and (not rule.tls or address.ssl_mode == VERIFIED_TLS)
    )


def _is_host(pattern: str, host: str) -> bool:
    """Say whether a rule's host means `host`. An address is compared as a number, so that no spelling slips past."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # A name. What looks like an address and is none, such as 127.1 or 0x7f000001, is resolved as one by some
        # libraries: only a rule that spells it in the same way lets it pass, and no network does.
        wild = pattern.startswith("*.") and "/" not in pattern
        return host.lower().endswith(pattern[1:].lower()) if wild else host.lower() == pattern.lower()
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    try:
        return address in ipaddress.ip_network(pattern)
    except ValueError:
        return False


def _secrets(
    policy: Policy, document: PipelineDocument, source: ConnectionDocument, sink: ConnectionDocument
) -> list[Violation]:
    masks = [
        transform.secret
        for transform in document.transforms
        if isinstance(transform, MaskTransform) and transform.secret is not None
    ]
    return _refused_secrets(policy, [*source.secrets.values(), *sink.secrets.values(), *masks])


def _refused_secrets(policy: Policy, references: Iterable[str]) -> list[Violation]:
    return [
        Violation(code=Code.POLICY_SECRET_REFUSED, what=f"[secrets] does not allow {reference}")
        for reference in dict.fromkeys(references)
        if not any(fnmatchcase(reference, pattern) for pattern in policy.secrets.allowed)
    ]


def _asked(allow: Allowances, document: PipelineDocument) -> list[Violation]:
    refused = []
    if document.run is RunState.REMOVED and not allow.remove:
        refused.append("[allow] has not `remove = true`")
    if document.resyncs and not allow.resync:
        refused.append("[allow] has not `resync = true`")
    if document.partial_copies and not allow.resync:
        refused.append("[allow] has not `resync = true`, and a part of a table is copied again")
    if any(each.repair for each in document.comparisons.values()) and not allow.resync:
        refused.append("[allow] has not `resync = true`, and a repair writes rows again")
    if document.buffer.type is BufferType.JETSTREAM and not allow.jetstream:
        refused.append("[allow] has not `jetstream = true`")
    return [Violation(code=Code.POLICY_ACTION_REFUSED, what=what) for what in refused]


def _probing(rules: Sequence[MaskRule], document: PipelineDocument) -> list[Violation]:
    """Return which conditions of copies name a column that may only leave masked: how many rows match would tell its values."""
    return [
        Violation(
            code=Code.POLICY_ACTION_REFUSED,
            what=f"column {condition.column} of {table} may only leave masked, and a condition on it would tell its values",
            table=table,
            column=condition.column,
        )
        for table, backfill in document.partial_copies.items()
        for condition in backfill.where
        if any(_matches(rule.tables, table) and _matches(rule.columns, condition.column) for rule in rules)
    ]


def _matches(patterns: Sequence[str], name: str) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


PRODUCTION = """\
# What this node may do, whatever a control plane asks. Only you write this file; it is read again at each change.
# Nothing is allowed until you say so. Check a pipeline first: pointsman node policy check --folder FOLDER -f FILE

# [[source]]
# hosts = ["db.internal"]
# databases = ["shop"]
# tables = ["public.*"]
# tls = true

# [[destination]]
# hosts = ["warehouse.internal"]
# tls = true

# [[mask]]
# columns = ["email", "*_ssn"]
# methods = ["hash", "drop"]

[secrets]
allowed = []

# [documents]
# signed_by = ["U…"]    # the public key that `pointsman keys create` shows: nothing runs that it did not sign

[allow]
remove = false
resync = false
questions = false
jetstream = false
"""
"""What `node join` writes."""

LOCAL = """\
# For a trial on one machine: everything here, and nothing elsewhere. Only you write this file.

[[source]]
hosts = ["127.0.0.1", "::1", "localhost"]

[[destination]]
hosts = ["127.0.0.1", "::1", "localhost"]

[secrets]
allowed = ["file:*", "env:*"]

[allow]
remove = true
resync = true
questions = true
jetstream = true
"""
"""What `pointsman up` writes for its nodes."""

PROFILES = {"production": PRODUCTION, "local": LOCAL}
