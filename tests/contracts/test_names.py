"""Identifiers: what they let pass, and that derived ones never change."""

from typing import Any, get_args
from uuid import UUID

import msgspec
import pytest

from contracts import names

EXAMPLES: dict[str, tuple[str, ...]] = {
    "ResourceName": ("a", "0", "shop-to-warehouse", "a" * 63),
    "SqlName": ("a", "Order$Lines_2", "_", "a" * 63),
    "TableName": ("public.orders", "A$.b_1", "a" * 63 + "." + "b" * 63),
    "SecretReference": ("env:SHOP_PASSWORD", "file:shop_password", "file:a/b.c/d-e"),
    "TenantId": ("3f2504e0-4f89-11d3-9a0c-0305e82c3301",),
    "Digest": ("0123456789abcdef" * 4,),
    "PublicKey": ("U" + "A" * 55, "A" + "7" * 55),
    "Signature": ("-_aZ09" + "A" * 80,),
    "SqlState": ("22P02", "00000"),
    "CorrelationId": ("0" * 32,),
    "AgentVersion": ("0.1", "0.1.0", "2026.10.1.9999"),
    "HostName": ("127.0.0.1", "db.internal", "::1", "a" * 253),
}
HOSTILE = (
    "\n",
    "\r\n",
    " ",
    "\0",
    "*",
    ">",
    "\xe9",
    "\uff41",
    "\u0430",
    "\u200b",
    "'",
    '"',
    "\\",
    "\U0001f600",
    "%",
    ";",
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_identifier_takes_what_it_is_for(name: str) -> None:
    """The shortest, the longest and an ordinary value of each kind of identifier are accepted."""
    for value in EXAMPLES[name]:
        assert msgspec.convert(value, getattr(names, name)) == value


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_no_identifier_lets_a_foreign_character_pass(name: str, hostile: str) -> None:
    """In front, in the middle or at the end: a newline above all, which Python's `$` alone would let pass."""
    kind: Any = getattr(names, name)
    (pattern,) = [each.pattern for each in get_args(kind) if isinstance(each, msgspec.Meta)]
    for value in EXAMPLES[name]:
        middle = len(value) // 2
        for bad in (hostile, value + hostile, hostile + value, value[:middle] + hostile + value[middle:]):
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert(bad, kind)
            assert not names.matches(pattern, bad)


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_identifier_is_empty_or_longer_than_its_bound(name: str) -> None:
    """An empty text and one that is one longer than the bound are refused."""
    kind: Any = getattr(names, name)
    (bound,) = [each.max_length for each in get_args(kind) if isinstance(each, msgspec.Meta)]
    for bad in ("", EXAMPLES[name][-1][:1] * (bound + 1)):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, kind)


@pytest.mark.parametrize(
    "reference",
    [
        "file:/etc/passwd",
        "file:../password",
        "file:a/../b",
        "file:.hidden",
        "file:a//b",
        "file:a/",
        "file:",
        "env:lower",
        "env:",
        "env:A=B",
        "s3cret",
        "file:" + "/".join("abcdefghi"),
    ],
)
def test_a_secret_reference_stays_below_the_secrets_folder(reference: str) -> None:
    """Absolute, upward, hidden and deep paths are refused, and so is a secret itself."""
    assert not names.matches(names.SECRET_REFERENCE_PATTERN, reference)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("Pipeline", "shop-to-warehouse", "3529ddfc-9b27-50d2-8005-94471364a9ee"),
        ("Connection", "shop-to-warehouse", "a334ef69-8d35-55aa-be1f-4f8cfe14bb1c"),
        ("DataPlane", "local", "28d4d667-9385-5a52-89c8-691cdb678bfc"),
    ],
)
def test_the_id_of_a_resource_never_changes(kind: str, name: str, expected: str) -> None:
    """Ids are derived: were the rule to change, every existing resource would be lost."""
    tenant = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
    assert names.resource_id(tenant, kind, name) == UUID(expected)
    assert names.resource_id(UUID(tenant), kind, name) == UUID(expected)


def test_two_tenants_never_share_an_id() -> None:
    """The same kind and name under another tenant is another resource."""
    one, other = "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "3f2504e0-4f89-11d3-9a0c-0305e82c3302"
    assert names.resource_id(one, "Pipeline", "a") != names.resource_id(other, "Pipeline", "a")
