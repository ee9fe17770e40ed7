"""The subjects of the channel, seen from both of its ends.

A tenant's account sees `desired.…` and `up.…`. The hub maps them under `tenant.<account key>.…` in the control
plane's account, so identity comes from the subject that the server wrote, never from a payload or a header.
Every token is one of the identifiers of `names`, so none can hold a dot, a wildcard or a space.
"""

from typing import NamedTuple

from contracts.names import PUBLIC_KEY_PATTERN, RESOURCE_NAME_PATTERN, matches
from contracts.v2 import Kind

UP_KINDS = ("sync", "heartbeat", "report", "answer", "certificate")
"""`report` carries facts and is answered after the control plane's commit; `heartbeat` is never answered.

`certificate` asks for a leaf's next one; it is spoken in contract version 2 alone, whatever the node is pinned to.
"""


class UpAddress(NamedTuple):
    """Who sent an upward message, as the hub's subject says it."""

    account: str
    contract: int
    data_plane: str
    node: str
    kind: str


def _token(value: str) -> str:
    if not matches(RESOURCE_NAME_PATTERN, value):
        raise ValueError("not an identifier, so not a token of a subject")
    return value


def desired(contract: int, data_plane: str, kind: Kind, name: str) -> str:
    """Return the tenant-side subject of one document. The index has no name of its own: `name` is ignored for it.

    Like every function here that builds a subject, it raises ValueError for a token that is not an identifier.
    """
    if kind is Kind.INDEX:
        return f"desired.v{contract}.{_token(data_plane)}.index"
    return f"desired.v{contract}.{_token(data_plane)}.{kind.value}.{_token(name)}"


def desired_all(contract: int, data_plane: str) -> str:
    """Return the tenant-side wildcard of all documents for one data plane in one contract version."""
    return f"desired.v{contract}.{_token(data_plane)}.>"


def question(contract: int, data_plane: str, node: str) -> str:
    """Return the tenant-side subject of interactive questions for one node."""
    return f"desired.v{contract}.{_token(data_plane)}.question.{_token(node)}"


def up(contract: int, data_plane: str, node: str, kind: str) -> str:
    """Return the tenant-side subject on which `node` sends messages of `kind`, one of UP_KINDS."""
    if kind not in UP_KINDS:
        raise ValueError("not a kind of upward message")
    return f"up.v{contract}.{_token(data_plane)}.{_token(node)}.{kind}"


def up_all(data_plane: str) -> tuple[str, ...]:
    """Return the tenant-side wildcards that a data plane's leaf may publish on."""
    return (f"up.v1.{_token(data_plane)}.>", f"up.v2.{_token(data_plane)}.>")


def for_tenant(account: str, subject: str) -> str:
    """Return the control-plane side of a tenant-side subject. `account` is the tenant account's public key."""
    if not matches(PUBLIC_KEY_PATTERN, account):
        raise ValueError("not the public key of an account")
    return f"tenant.{account}.{subject}"


EVERY_TENANT_UP = "tenant.*.up.>"
ADMISSION = "admission"
"""Where a tenant's account asks the control plane whether a leaf that connects may. The hub asks, never a leaf."""
EVERY_TENANT_ADMISSION = f"tenant.*.{ADMISSION}"


def parse_admission(subject: str) -> str:
    """Return the account that asks about a leaf, from the subject that the control plane was asked on.

    Raises:
        ValueError: the subject has not the form `tenant.<account>.admission`.
    """
    parts = subject.split(".")
    if len(parts) != 3 or (parts[0], parts[2]) != ("tenant", ADMISSION) or not matches(PUBLIC_KEY_PATTERN, parts[1]):
        raise ValueError("not the subject of a question about a leaf")
    return parts[1]


def parse_up(subject: str) -> UpAddress:
    """Read who sent an upward message from the subject that the control plane received it on.

    Raises:
        ValueError: the subject has not the form `tenant.<account>.up.v<contract>.<data plane>.<node>.<kind>`.
    """
    parts = subject.split(".")
    if len(parts) != 7 or parts[0] != "tenant" or parts[2] != "up" or parts[6] not in UP_KINDS:
        raise ValueError("not the subject of an upward message")
    _, account, _, version, data_plane, node, kind = parts
    if version not in ("v1", "v2") or not matches(PUBLIC_KEY_PATTERN, account):
        raise ValueError("unknown contract version or account in the subject")
    if not (matches(RESOURCE_NAME_PATTERN, data_plane) and matches(RESOURCE_NAME_PATTERN, node)):
        raise ValueError("not an identifier in the subject")
    return UpAddress(account, int(version[1:]), data_plane, node, kind)
