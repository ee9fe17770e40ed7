"""Who sent a message is read from its subject, so no token of a subject can say something else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.examples import SIGNER

from contracts import subjects
from contracts.names import RESOURCE_NAME_PATTERN
from contracts.v2 import Kind

ACCOUNT = SIGNER.public
NAMES = st.from_regex(RESOURCE_NAME_PATTERN, fullmatch=True)
HOSTILE = [
    "",
    "*",
    ">",
    "a.b",
    "a b",
    "a\n",
    "\na",
    "a\0",
    "a\t",
    "-a",
    "a-",
    "A",
    "a_b",
    "$sys",
    "a" * 64,
    "\xe9",
    "\uff41",  # a full-width letter
    "\u0430",  # a Cyrillic letter that looks like a Latin one
    "a\u200b",
    "a/b",
    "..",
]


@given(contract=st.sampled_from([1, 2]), data_plane=NAMES, node=NAMES, kind=st.sampled_from(subjects.UP_KINDS))
def test_the_control_plane_reads_who_sent_from_the_subject(
    contract: int, data_plane: str, node: str, kind: str
) -> None:
    """What a node sends on is what the control plane parses, with the account in front."""
    subject = subjects.for_tenant(ACCOUNT, subjects.up(contract, data_plane, node, kind))
    assert subjects.parse_up(subject) == (ACCOUNT, contract, data_plane, node, kind)


@pytest.mark.parametrize("token", HOSTILE, ids=repr)
def test_a_token_that_is_no_identifier_is_refused_when_a_subject_is_read(token: str) -> None:
    """A hostile data plane, node, kind, version or account in a subject raises."""
    good = ["tenant", ACCOUNT, "up", "v2", "local", "node-1", "report"]
    for place in range(len(good)):
        subject = ".".join([*good[:place], token, *good[place + 1 :]])
        with pytest.raises(ValueError, match=r"subject"):
            subjects.parse_up(subject)


@pytest.mark.parametrize("token", HOSTILE, ids=repr)
def test_a_token_that_is_no_identifier_is_refused_when_a_subject_is_built(token: str) -> None:
    """No subject can be built with a token that holds a dot, a wildcard, a space or a foreign letter."""
    builders = [
        lambda: subjects.desired(2, token, Kind.PIPELINE, "a"),
        lambda: subjects.desired(2, "local", Kind.PIPELINE, token),
        lambda: subjects.desired(2, token, Kind.INDEX, "a"),
        lambda: subjects.desired_all(2, token),
        lambda: subjects.question(2, token, "a"),
        lambda: subjects.question(2, "local", token),
        lambda: subjects.up(2, token, "a", "sync"),
        lambda: subjects.up(2, "local", token, "sync"),
        lambda: subjects.up(2, "local", "a", token),
        lambda: subjects.up_all(token),
        lambda: subjects.for_tenant(token, "up.v2.local.node-1.sync"),
    ]
    for build in builders:
        with pytest.raises(ValueError, match=r"not (a|an|the) "):
            build()


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "tenant",
        f"tenant.{ACCOUNT}.up.v2.local.node-1",
        f"tenant.{ACCOUNT}.up.v2.local.node-1.report.more",
        f"tenant.{ACCOUNT}.up.v3.local.node-1.report",
        f"tenant.{ACCOUNT}.desired.v2.local.node-1.report",
        f"tenant.{ACCOUNT}.up.v2.local.node-1.report\n",
        f"tenant.{ACCOUNT.lower()}.up.v2.local.node-1.report",
    ],
)
def test_a_subject_of_another_form_is_refused(subject: str) -> None:
    """Too short, too long, of an unknown version or not upward: no address is made up."""
    with pytest.raises(ValueError, match="subject"):
        subjects.parse_up(subject)


@given(contract=st.sampled_from([1, 2]), data_plane=NAMES, kind=st.sampled_from(Kind), name=NAMES)
def test_every_document_of_a_data_plane_lies_under_its_wildcard(
    contract: int, data_plane: str, kind: Kind, name: str
) -> None:
    """A leaf that may read its plane's wildcard gets all of its documents, and none of another plane's."""
    subject = subjects.desired(contract, data_plane, kind, name)
    assert subject.startswith(subjects.desired_all(contract, data_plane).removesuffix(">"))
    assert not subject.startswith(subjects.desired_all(contract, "x" + data_plane[1:] + "0").removesuffix(">"))
