"""A signed message is accepted whole, from the right key, for the right purpose and version, or not at all."""

import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.examples import MESSAGES_2, NODE, SIGNER, sealed

from contracts import v1
from contracts.envelope import (
    PAYLOAD_BYTES_MAX,
    EnvelopeError,
    Purpose,
    decode_document,
    decode_report,
    digest,
    open_signed,
    sign,
    sign_bytes,
    verify,
)
from contracts.keys import KeyPair, Role
from contracts.keys import verify as verify_signature

TRUSTED = frozenset({SIGNER.public})
DOCUMENT = sealed(2)["signed-pipeline"]


def accept(data: bytes, purpose: Purpose = Purpose.DOCUMENT) -> bytes:
    return verify(open_signed(data), keys=TRUSTED, purpose=purpose)


def with_field(name: str, value: Any) -> bytes:
    fields = msgspec.json.decode(DOCUMENT, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, name: value})


def test_what_was_signed_comes_out_as_it_was() -> None:
    """Verification gives back the very bytes that were signed, and they decode to the document."""
    assert decode_document(accept(DOCUMENT), 2) == MESSAGES_2["pipeline"]


def test_a_key_that_is_not_trusted_is_refused() -> None:
    """A good signature by another key counts for nothing, and neither does its claim to be the trusted one."""
    other = KeyPair.generate(Role.ACCOUNT)
    forged = sign(MESSAGES_2["pipeline"], other, contract=2, purpose=Purpose.DOCUMENT)
    with pytest.raises(EnvelopeError, match="not trusted"):
        accept(forged)
    with pytest.raises(EnvelopeError, match="does not match"):
        accept(forged.replace(other.public.encode(), SIGNER.public.encode()))


@pytest.mark.parametrize("other", [purpose for purpose in Purpose if purpose is not Purpose.DOCUMENT])
def test_a_signature_for_another_purpose_is_refused(other: Purpose) -> None:
    """A signed document never passes for a report or a checkpoint."""
    with pytest.raises(EnvelopeError, match="does not match"):
        accept(DOCUMENT, other)


def test_the_version_of_a_document_cannot_be_altered() -> None:
    """Read as version 1, a document of version 2 could lose a transform: the version is part of what is signed."""
    with pytest.raises(EnvelopeError, match="does not match"):
        accept(with_field("contract", 1))


@given(place=st.integers(0, len(DOCUMENT) - 1), flip=st.integers(1, 255))
def test_one_altered_byte_anywhere_never_changes_what_is_accepted(place: int, flip: int) -> None:
    """Any flipped byte is refused, unless it leaves the signed bytes as they were."""
    altered = DOCUMENT[:place] + bytes([DOCUMENT[place] ^ flip]) + DOCUMENT[place + 1 :]
    try:
        raw = accept(altered)
    except EnvelopeError:
        return
    assert raw == accept(DOCUMENT)
    assert open_signed(altered).contract == 2


@given(st.integers(0, len(msgspec.json.encode(MESSAGES_2["pipeline"])) - 1), st.integers(0, 7))
def test_one_altered_bit_of_the_body_is_refused(place: int, bit: int) -> None:
    """Every bit of the body is signed."""
    start = DOCUMENT.index(b'"body":') + len(b'"body":')
    place += start
    altered = DOCUMENT[:place] + bytes([DOCUMENT[place] ^ (1 << bit)]) + DOCUMENT[place + 1 :]
    with pytest.raises(EnvelopeError):
        accept(altered)


@given(st.integers(0, len(DOCUMENT) - 1))
def test_a_truncated_message_is_refused(length: int) -> None:
    """No prefix of a message is a message."""
    with pytest.raises(EnvelopeError):
        open_signed(DOCUMENT[:length])


def test_a_message_over_the_bound_is_refused_at_both_ends() -> None:
    """The bound counts bytes, whoever sends."""
    body = b'"' + b"a" * PAYLOAD_BYTES_MAX + b'"'
    with pytest.raises(EnvelopeError, match="over the limit"):
        sign_bytes(body, SIGNER, contract=2, purpose=Purpose.DOCUMENT)
    with pytest.raises(EnvelopeError, match="over the limit"):
        open_signed(with_field("body", "a" * PAYLOAD_BYTES_MAX))
    with pytest.raises(EnvelopeError, match="over the limit"):
        open_signed("\u20ac" * (PAYLOAD_BYTES_MAX // 2))


@given(
    st.binary(max_size=200) | st.text(max_size=200) | st.sampled_from([b"[" * 60_000, b'{"body":' * 7_000, "\ud800"])
)
def test_anything_else_is_refused_with_one_kind_of_error(data: bytes | str) -> None:
    """Whatever arrives, the reader has to answer one exception only."""
    with pytest.raises(EnvelopeError):
        open_signed(data)
    raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    for contract in (0, 1, 2, 3):
        with pytest.raises(EnvelopeError):
            decode_document(raw, contract)
        with pytest.raises(EnvelopeError):
            decode_report(raw, contract)


def test_an_envelope_with_one_more_field_is_refused() -> None:
    """Nothing rides beside the signed body."""
    with pytest.raises(EnvelopeError):
        open_signed(with_field("note", "anything"))


def test_a_report_of_one_version_is_not_read_as_the_other() -> None:
    """The body says its version too."""
    raw = msgspec.json.encode(MESSAGES_2["report"])
    with pytest.raises(EnvelopeError):
        decode_report(raw, v1.CONTRACT)


def test_signing_again_with_a_newer_key_leaves_the_digest() -> None:
    """A rotation of keys changes no document: its digest is over the body alone."""
    newer = KeyPair.generate(Role.ACCOUNT)
    raw = accept(DOCUMENT)
    again = sign_bytes(raw, newer, contract=2, purpose=Purpose.DOCUMENT)
    assert again != DOCUMENT
    assert digest(verify(open_signed(again), keys=frozenset({newer.public}), purpose=Purpose.DOCUMENT)) == digest(raw)


@pytest.mark.parametrize("public", ["", "A", "not base32!", "A" * 56, NODE.public[:-1] + "A", NODE.public.lower()])
def test_a_damaged_public_key_verifies_nothing(public: str) -> None:
    """A key with a wrong length, alphabet or checksum is answered with no, not with an exception."""
    assert not verify_signature(public, b"message", NODE.sign(b"message"))


@pytest.mark.parametrize(
    "seed", ["", "SU", "S" + "A" * 57, SIGNER.public, "SAAB\n", "x" * 58, b"\xff" * 58, SIGNER.seed[:-1]]
)
def test_a_damaged_seed_is_refused_without_being_quoted(seed: str | bytes) -> None:
    """The error of a seed that cannot be read says nothing of the seed, and neither does its cause."""
    with pytest.raises(ValueError, match="not an nkey seed") as caught:
        KeyPair(seed)
    text = seed if isinstance(seed, str) else seed.decode("latin-1")
    chain: BaseException | None = caught.value
    while chain is not None:
        assert len(text) < 5 or text.strip() not in f"{chain} {chain!r}"
        chain = chain.__cause__


def test_a_key_never_prints_its_seed() -> None:
    """However a key is printed or formatted, only its public half shows; it cannot be pickled."""
    pair = KeyPair.generate(Role.USER)
    for text in (repr(pair), str(pair), f"{pair}", repr([pair]), repr({"key": pair})):
        assert pair.public in text
        assert pair.seed not in text
    with pytest.raises(TypeError):
        pickle.dumps(pair)


def test_a_key_says_by_its_first_letter_what_it_is() -> None:
    """Operator, account and user keys cannot be mistaken for one another, and come back from their seeds."""
    for role, letter in ((Role.OPERATOR, "O"), (Role.ACCOUNT, "A"), (Role.USER, "U")):
        pair = KeyPair.generate(role)
        assert pair.public[0] == letter
        assert KeyPair(pair.seed).public == pair.public
        assert KeyPair.derive(role, b"\1" * 32).public == KeyPair.derive(role, b"\1" * 32).public
