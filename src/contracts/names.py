"""Identifiers that may cross between the planes: each has a bounded alphabet and a bounded length.

A record cannot hide in any of these types, and every one is safe as a NATS subject token, a file name and a log field.
The messages of `v1` and `v2` are built from them; the control plane's API validates what people write with them.
"""

import re
from datetime import datetime
from typing import Annotated
from uuid import NAMESPACE_URL, UUID, uuid5

from msgspec import Meta

# `$(?!\n)` and not `\Z`: the same pattern is published in JSON Schema, and Python's `$` alone lets a newline pass.
PUBLIC_KEY_PATTERN = r"^[AUON][A-Z2-7]{55}$(?!\n)"
RESOURCE_NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$(?!\n)"
# An uncompressed point of P-256 in base64url: 65 bytes of which the first is 4.
TLS_KEY_PATTERN = r"^B[A-Za-z0-9_-]{86}$(?!\n)"
SQL_NAME_PATTERN = r"^[A-Za-z0-9_$]{1,63}$(?!\n)"
TABLE_NAME_PATTERN = r"^[A-Za-z0-9_$]{1,63}\.[A-Za-z0-9_$]{1,63}$(?!\n)"
_SEGMENT = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}"
# `file:` and `k8s:` paths are relative to the node's secrets folder; no segment may start with a dot. What follows a `#`
# is one field of a secret. Nothing in a reference names a host: where Vault and AWS are, only the node knows.
SECRET_REFERENCE_PATTERN = (
    r"^(env:[A-Z_][A-Z0-9_]{0,127}"
    rf"|file:{_SEGMENT}(/{_SEGMENT}){{0,7}}"
    rf"|k8s:{_SEGMENT}(/{_SEGMENT}){{1,7}}"
    rf"|vault:{_SEGMENT}(/{_SEGMENT}){{1,7}}#{_SEGMENT}"
    rf"|aws-sm:{_SEGMENT}(/{_SEGMENT}){{0,7}}(#{_SEGMENT})?)$(?!\n)"
)
SECRET_SCHEMES = ("env:", "file:", "k8s:", "vault:", "aws-sm:")
SECRET_FORMS = "env:NAME, file:PATH, k8s:MOUNT/KEY, vault:MOUNT/PATH#FIELD or aws-sm:NAME#FIELD"
"""For people whose reference has another form."""

ResourceName = Annotated[
    str,
    Meta(
        pattern=RESOURCE_NAME_PATTERN,
        max_length=63,
        description="Lower-case letters, digits and hyphens; starts and ends with a letter or digit; at most 63 long.",
    ),
]
SqlName = Annotated[
    str,
    Meta(
        pattern=SQL_NAME_PATTERN,
        max_length=63,
        description="A column, schema or type name of [A-Za-z0-9_$], at most 63 long.",
    ),
]
TableName = Annotated[
    str,
    Meta(pattern=TABLE_NAME_PATTERN, max_length=127, description="schema.table, both of [A-Za-z0-9_$]."),
]
SecretReference = Annotated[
    str,
    Meta(
        pattern=SECRET_REFERENCE_PATTERN,
        max_length=600,
        description=f"Where the node finds the secret: {SECRET_FORMS}. Never the secret itself.",
    ),
]
TenantId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$(?!\n)", max_length=36)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", max_length=64, description="SHA-256 in hex.")]
PublicKey = Annotated[
    str, Meta(pattern=PUBLIC_KEY_PATTERN, max_length=56, description="An nkey's public half (Ed25519, base32).")
]
Signature = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_-]{86}$(?!\n)", max_length=86, description="Ed25519 signature, base64url unpadded.")
]
TlsKey = Annotated[
    str,
    Meta(
        pattern=TLS_KEY_PATTERN, max_length=87, description="A TLS public key: an uncompressed P-256 point, base64url."
    ),
]
SqlState = Annotated[str, Meta(pattern=r"^[0-9A-Z]{5}$(?!\n)", max_length=5, description="SQLSTATE of the cause.")]
Region = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$(?!\n)",
        max_length=63,
        description="Where something is, as its owner calls it: eu-central-1, DE-Berlin.",
    ),
]
CorrelationId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$(?!\n)", max_length=32)]
AgentVersion = Annotated[str, Meta(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}$(?!\n)", max_length=19)]
HostName = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9_.:-]{1,253}$(?!\n)", max_length=253, description="DNS name or address of a server."),
]

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Generation = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Lsn = Annotated[int, Meta(ge=0, le=2**63 - 1, description="A position in the source's log, as a number.")]
Port = Annotated[int, Meta(ge=1, le=65535)]
Instant = Annotated[datetime, Meta(tz=True)]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]

_NAMESPACE = uuid5(NAMESPACE_URL, "https://pointsman.dev/ids")


def matches(pattern: str, value: str) -> bool:
    """Say whether the whole of `value` has the form of `pattern`, one of the patterns above."""
    return re.search(pattern, value) is not None


def resource_id(tenant: str | UUID, kind: str, name: str) -> UUID:
    """Return the id of a tenant's resource.

    It is derived from the authenticated tenant, so another tenant's resource cannot even be addressed, and a name used
    again continues in the same event stream.
    """
    return uuid5(_NAMESPACE, f"{tenant}/{kind}/{name}")
