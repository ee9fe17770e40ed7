"""What a node accepts as its own: forged, foreign, old or altered documents change nothing and are said to be refused."""

from pathlib import Path

import msgspec
import pytest

from contracts import v2
from contracts.codes import Code
from contracts.envelope import Purpose, digest, sign
from contracts.keys import KeyPair, Role
from dataplane.link.admission import Expected, Reason, Refused, admit
from dataplane.link.ledger import Ledger, entries
from dataplane.link.store import DocumentStore
from dataplane.link.uplink import SEQUENCE_BLOCK, SequenceCounter, Uplink

TENANT, OTHER = "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "3f2504e0-4f89-11d3-9a0c-0305e82c3302"
ROOT, ONLINE, NEWER, STRANGER = (KeyPair.derive(Role.ACCOUNT, bytes([number]) * 32) for number in range(1, 5))


def _envelope(
    document: v2.AnyDocument, key: KeyPair = ONLINE, *, contract: int = 2, purpose: Purpose = Purpose.DOCUMENT
) -> str:
    return sign(document, key, contract=contract, purpose=purpose).decode()


def _trust(number: int = 1, *keys: KeyPair, tenant: str = TENANT) -> v2.TrustDocument:
    public = [key.public for key in keys or (ONLINE,)]
    return v2.TrustDocument(tenant=tenant, data_plane="local", name="trust", epoch=1, generation=number, keys=public)


def _connection(
    generation: int = 1, *, epoch: int = 1, tenant: str = TENANT, plane: str = "local"
) -> v2.ConnectionDocument:
    config = v2.PostgresConfig(host="db", database="shop", user="pointsman")
    return v2.ConnectionDocument(
        tenant=tenant, data_plane=plane, name="shop", epoch=epoch, generation=generation, config=config
    )


def _index(revision: int, *documents: v2.ConnectionDocument, epoch: int = 1) -> v2.IndexDocument:
    entries = [
        v2.IndexEntry(kind=v2.Kind.CONNECTION, name=each.name, generation=each.generation, digest=_digest(each))
        for each in documents
    ]
    return v2.IndexDocument(
        tenant=TENANT, data_plane="local", name="index", epoch=epoch, generation=1, revision=revision, entries=entries
    )


def _digest(document: v2.ConnectionDocument) -> str:
    return digest(msgspec.json.encode(document))


class Node:
    """A store with what decides on admission, as the link puts them together."""

    def __init__(self, folder: Path) -> None:
        self.store = DocumentStore(folder)

    def take(self, envelope: str) -> bool:
        trust = self.store.trust()
        expected = Expected(
            tenant=TENANT,
            data_plane="local",
            root_key=ROOT.public,
            contract=2,
            trusted=frozenset(trust.keys) if trust else frozenset(),
            trust_generation=trust.generation if trust else 0,
        )
        return self.store.put(admit(envelope, expected))

    def refusal(self, envelope: str) -> Reason:
        with pytest.raises(Refused) as caught:
            self.take(envelope)
        return caught.value.reason


@pytest.fixture
def node(folder: Path) -> Node:
    made = Node(folder)
    made.take(_envelope(_trust(), ROOT))
    return made


def test_forged_and_foreign_documents_are_refused(node: Node) -> None:
    """A stranger's key, the root's key on a document, another purpose, tenant, data plane or version: none is taken."""
    good = _connection()
    assert node.refusal(_envelope(good, STRANGER)) is Reason.NOT_SIGNED_BY_TRUSTED
    assert node.refusal(_envelope(good, ROOT)) is Reason.NOT_SIGNED_BY_TRUSTED
    assert node.refusal(_envelope(_trust(2, STRANGER), ONLINE)) is Reason.NOT_SIGNED_BY_TRUSTED
    assert node.refusal(_envelope(good, purpose=Purpose.REPORT)) is Reason.NOT_SIGNED_BY_TRUSTED
    assert node.refusal(_envelope(good).replace('"host":"db"', '"host":"dc"')) is Reason.NOT_SIGNED_BY_TRUSTED
    assert node.refusal(_envelope(_connection(tenant=OTHER))) is Reason.OTHER_TENANT
    assert node.refusal(_envelope(_connection(plane="elsewhere"))) is Reason.OTHER_DATA_PLANE
    assert node.refusal(_envelope(good, contract=1)) is Reason.OTHER_CONTRACT
    assert node.refusal("{") is Reason.MALFORMED
    assert node.store.index() is None


def test_older_documents_and_indexes_are_refused(node: Node) -> None:
    """Neither a generation nor a revision nor a trust list goes back; a higher epoch makes lower numbers newer."""
    newer = _connection(5)
    node.take(_envelope(newer))
    assert node.take(_envelope(_index(10, newer)))
    assert node.refusal(_envelope(_index(9, newer))) is Reason.OLDER
    assert node.refusal(_envelope(_connection(4))) is Reason.OLDER
    restored = _connection(2, epoch=2)
    node.take(_envelope(restored))
    assert node.take(_envelope(_index(3, restored, epoch=2)))
    assert node.store.connections()["shop"].generation == 2
    node.take(_envelope(_trust(3, NEWER, ONLINE), ROOT))
    assert node.refusal(_envelope(_trust(2, STRANGER), ROOT)) is Reason.OLDER
    assert node.refusal(_envelope(_trust(3, STRANGER), ROOT)) is Reason.OLDER


def test_a_key_that_left_the_list_signs_nothing_more(node: Node) -> None:
    """What it signed before stays; what it signs now is refused."""
    held = _connection()
    node.take(_envelope(held))
    node.take(_envelope(_index(1, held)))
    node.take(_envelope(_trust(2, NEWER), ROOT))
    assert node.refusal(_envelope(_connection(2))) is Reason.NOT_SIGNED_BY_TRUSTED
    assert set(node.store.connections()) == {"shop"}
    node.take(_envelope(_connection(2), NEWER))
    assert node.take(_envelope(_index(2, _connection(2)), NEWER))


def test_an_index_shows_only_when_it_is_whole(node: Node, folder: Path) -> None:
    """Until the last document is here the index before it holds, also after a restart in between."""
    first = _connection(1)
    node.take(_envelope(first))
    node.take(_envelope(_index(1, first)))
    second = _connection(2)
    assert not node.take(_envelope(_index(2, second)))
    assert [entry.generation for entry in node.store.missing()] == [2]
    assert node.store.connections()["shop"].generation == 1
    again = Node(folder)
    assert again.store.connections()["shop"].generation == 1
    again.take(_envelope(_index(2, second)))
    assert again.take(_envelope(second))
    assert DocumentStore(folder).connections()["shop"].generation == 2


def test_a_document_that_rotted_on_the_disk_is_missing_and_not_believed(node: Node, folder: Path) -> None:
    """A changed byte makes the index wait until the document is here again."""
    held = _connection()
    node.take(_envelope(held))
    node.take(_envelope(_index(1, held)))
    (path,) = (folder / "objects").glob("*.json")
    path.write_bytes(path.read_bytes().replace(b'"db"', b'"dc"'))
    again = Node(folder)
    assert again.store.index() is None
    assert [entry.name for entry in again.store.missing()] == ["shop"]
    assert again.take(_envelope(held))
    assert set(again.store.connections()) == {"shop"}


def test_numbers_never_repeat_whatever_is_killed(folder: Path) -> None:
    """A counter that is opened again goes on after the block that was claimed."""
    first = SequenceCounter(folder)
    used = [first.next() for _ in range(3)]
    second = SequenceCounter(folder)
    used += [second.next() for _ in range(SEQUENCE_BLOCK + 1)]
    assert len(set(used)) == len(used)
    assert sorted(used) == used


def test_only_messages_of_the_contracts_pass_the_gate(folder: Path) -> None:
    """Anything else that somebody tries to send up is a fault of the program."""
    ledger = Ledger(folder / "ledger")
    gate = Uplink("node-1", ONLINE, SequenceCounter(folder), ledger, contract=2)
    with pytest.raises(TypeError):
        gate.seal(_connection())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        gate.seal({"type": "error", "code": Code.INTERNAL})  # type: ignore[arg-type]
    assert list(entries(folder / "ledger")) == []
