"""The customer's own signature, asked for by the policy: what a node refuses, and what it remembers."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import structs
from tests.dataplane.node.documents import CONNECTIONS, pipeline

from contracts.codes import Code
from contracts.countersigning import of_document
from contracts.keys import KeyPair, Role
from contracts.v2 import DropTransform, PipelineDocument
from dataplane.node.signatures import FILE_NAME, Signable, Signatures
from dataplane.policy import DocumentRules, PolicyInvalid, parse

KEY, OTHER = KeyPair.generate(Role.USER), KeyPair.generate(Role.USER)
RULES = DocumentRules(signed_by=[KEY.public])


def _signed(document: Signable, number: int, key: KeyPair = KEY) -> Signable:
    return structs.replace(document, signature=of_document(document).sign(key, number))


def _dropping(column: str) -> PipelineDocument:
    return structs.replace(pipeline(), transforms=[DropTransform(table="public.orders", columns=[column])])


def _codes(signatures: Signatures, *documents: Signable, rules: DocumentRules = RULES) -> list[Code]:
    return [each.code for each in signatures.judge(rules, documents)]


def test_unsigned_altered_and_foreign_documents_are_refused(folder: Path) -> None:
    """Each for its own reason; a document as it was signed passes."""
    signatures = Signatures(folder)
    good = _signed(pipeline(), 5)
    assert _codes(signatures, pipeline(), CONNECTIONS["shop"]) == [Code.POLICY_SIGNATURE_MISSING] * 2
    assert _codes(signatures, _signed(pipeline(), 5, OTHER)) == [Code.POLICY_SIGNATURE_INVALID]
    assert _codes(signatures, structs.replace(_dropping("a"), signature=good.signature)) == [
        Code.POLICY_SIGNATURE_INVALID
    ]
    assert _codes(signatures, good, _signed(CONNECTIONS["shop"], 1)) == []


def test_without_keys_in_the_policy_nothing_has_to_be_signed(folder: Path) -> None:
    """Signing is the customer's choice."""
    assert _codes(Signatures(folder), pipeline(), rules=DocumentRules()) == []


def test_an_older_document_is_refused_for_ever(folder: Path) -> None:
    """A node that took number 7 takes no 6 any more, however new its generation, and also after it was started again."""
    signatures = Signatures(folder)
    older, newer = _signed(_dropping("a"), 6), _signed(_dropping("b"), 7)
    assert _codes(signatures, older) == []
    assert _codes(signatures, newer) == []
    signatures.save()
    for each in (signatures, Signatures(folder)):
        replayed = structs.replace(older, generation=99, epoch=9)
        assert _codes(each, replayed) == [Code.POLICY_SIGNATURE_OLDER]
        assert _codes(each, newer) == []


def test_one_number_stands_for_one_document(folder: Path) -> None:
    """Two documents that were signed under one number are not exchanged for each other."""
    signatures = Signatures(folder)
    assert _codes(signatures, _signed(_dropping("a"), 6)) == []
    assert _codes(signatures, _signed(_dropping("b"), 6)) == [Code.POLICY_SIGNATURE_OLDER]


def test_a_new_node_can_be_told_from_when_signatures_count(folder: Path) -> None:
    """With `signed_after` a node that never saw the newer document refuses the older one as well."""
    rules = DocumentRules(signed_by=[KEY.public], signed_after=datetime(2026, 1, 1, tzinfo=UTC))
    moment = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
    assert _codes(Signatures(folder), _signed(pipeline(), moment), rules=rules) == [Code.POLICY_SIGNATURE_OLDER]
    assert _codes(Signatures(folder), _signed(pipeline(), moment + 1), rules=rules) == []


def test_a_memory_that_is_damaged_lets_nothing_old_in(folder: Path) -> None:
    """A node that cannot read what it took refuses instead of beginning anew."""
    signatures = Signatures(folder)
    assert _codes(signatures, _signed(pipeline(), 7)) == []
    signatures.save()
    path = folder / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b'"number":7', b'"number":1'))
    assert _codes(Signatures(folder), _signed(pipeline(), 7)) == [Code.POLICY_SIGNATURE_OLDER]


def test_what_is_not_written_down_yet_is_tried_again(folder: Path) -> None:
    """With a disk that takes nothing the node goes on from memory, and writes when it can."""
    signatures = Signatures(folder / "state")
    (folder / "state").write_text("a file where a folder belongs")
    assert _codes(signatures, _signed(pipeline(), 7)) == []
    signatures.save()
    assert signatures.unsaved
    (folder / "state").unlink()
    signatures.save()
    assert not signatures.unsaved
    assert _codes(Signatures(folder / "state"), _signed(_dropping("a"), 6)) == [Code.POLICY_SIGNATURE_OLDER]


@pytest.mark.parametrize("line", ['signed_by = ["SUAB"]', "signed_by = 1", "signed_after = 2026-01-01T00:00:00"])
def test_a_policy_with_a_wrong_key_or_a_moment_without_zone_is_no_policy(line: str) -> None:
    """A mistake must not turn into fewer questions."""
    with pytest.raises(PolicyInvalid):
        parse(f"[documents]\n{line}\n")
