"""The documents that a node has accepted, on its own disk: what it runs from, with or without a control plane.

Documents lie in `objects/`, each under the digest of its body, so a name is also a checksum. `visible.json` names the
index that the node acts on. An index becomes visible only once every document that it names lies here whole, and it
becomes so with one atomic rename: a reader never sees a half. Until then the index before it holds.

A document that this contract version cannot express is stood in for by `requires`: the pipeline then keeps the document
that it had, until one arrives that can be expressed.

The link fills the store, and the agent reads it. Both run on one event loop; nothing here is for other threads.
"""

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from contracts import v1, v2
from contracts.envelope import EnvelopeError, decode_document, digest, kind_of, open_signed
from dataplane.link.admission import Accepted, Document, Reason, Refused

VISIBLE = "visible.json"
OBJECTS = "objects"
OBJECTS_MAX = 2 * v2.INDEX_ENTRIES_MAX + 64
"""Documents on disk at once: those of the visible index, of the next one, and a few that outran theirs."""

PipelineDocument = v1.PipelineDocument | v2.PipelineDocument


class Stored(Struct, frozen=True):
    """A pipeline's document: its contract version, the JSON text of its body, and that text decoded."""

    contract: int
    raw: str
    document: PipelineDocument


class _Visible(Struct, frozen=True, kw_only=True):
    """What `visible.json` holds. `kept` maps pipelines that need a newer node to the digest of what they keep."""

    trust: str | None = None
    index: str | None = None
    kept: dict[str, str] = {}


class _File(Struct, frozen=True, kw_only=True):
    checksum: str
    body: msgspec.Raw


class DocumentStore:
    """The accepted documents of one node. `folder` is made when it does not exist.

    With `reads_only` nothing on the disk is touched: that is for commands beside a running agent.
    """

    def __init__(self, folder: Path, *, reads_only: bool = False) -> None:
        self._folder = folder
        self._objects = folder / OBJECTS
        self._reads_only = reads_only
        if not reads_only:
            self._objects.mkdir(parents=True, exist_ok=True)
        self._held: dict[str, Accepted] = {}
        self._trust: Accepted | None = None
        self._index: Accepted | None = None
        self._pending: Accepted | None = None
        self._kept: dict[str, str] = {}
        self._load()

    # ---- What the agent reads ---------------------------------------------------------------------------------------

    def index(self) -> v2.IndexDocument | None:
        """Return the index that the node acts on; None until a whole one has arrived."""
        return _as_index(self._index)

    @property
    def index_digest(self) -> str | None:
        """The digest of the index that the node acts on."""
        return self._index.digest if self._index else None

    def pipelines(self) -> dict[str, Stored]:
        """Return the pipelines of the visible index by name. One that needs a newer node keeps what it had, if any."""
        found: dict[str, Stored] = {}
        for entry in self._entries(v2.Kind.PIPELINE):
            held = self._held[entry.digest]
            if isinstance(held.document, v2.RequiresDocument):
                kept = self._held.get(self._kept.get(entry.name, ""))
                if kept is None:
                    continue
                held = kept
            if isinstance(held.document, (v1.PipelineDocument, v2.PipelineDocument)):
                found[entry.name] = Stored(held.contract, held.raw.decode(), held.document)
        return found

    def connections(self) -> dict[str, v2.ConnectionDocument]:
        """Return the connections of the visible index by name."""
        documents = {entry.name: self._held[entry.digest].document for entry in self._entries(v2.Kind.CONNECTION)}
        return {name: each for name, each in documents.items() if isinstance(each, v2.ConnectionDocument)}

    def needs_upgrade(self) -> dict[str, v2.RequiresDocument]:
        """Return the pipelines whose newest document this node's contract version cannot express."""
        documents = {entry.name: self._held[entry.digest].document for entry in self._entries(v2.Kind.PIPELINE)}
        return {name: each for name, each in documents.items() if isinstance(each, v2.RequiresDocument)}

    # ---- What the link reads and writes -----------------------------------------------------------------------------

    def trust(self) -> v2.TrustDocument | None:
        """Return the newest list of keys whose signatures count."""
        document = self._trust.document if self._trust else None
        return document if isinstance(document, v2.TrustDocument) else None

    def newest_index(self) -> tuple[v2.IndexDocument, str] | None:
        """Return the newest accepted index, visible or not, and its digest."""
        newest = self._pending or self._index
        index = _as_index(newest)
        return (index, newest.digest) if index is not None and newest is not None else None

    def missing(self) -> list[v2.IndexEntry]:
        """Return what the newest accepted index names and the store lacks."""
        pending = _as_index(self._pending)
        return [entry for entry in pending.entries if not self._has(entry)] if pending else []

    def texts(self) -> dict[tuple[v2.Kind, str], str]:
        """Return the envelopes of trust list, visible index and all that it names, for the leaf's copy."""
        texts = {(kind_of(each.document), each.document.name): each.text for each in (self._trust, self._index) if each}
        index = self.index()
        for entry in index.entries if index else ():
            if entry.kind is not v2.Kind.TRUST:
                texts[entry.kind, entry.name] = self._held[entry.digest].text
        return texts

    def put(self, accepted: Accepted) -> bool:
        """Take in an admitted document. Return whether what the agent reads has changed.

        Raises:
            Refused: the store holds a newer one.
        """
        self._check_order(accepted)
        match accepted.document:
            case v2.TrustDocument():
                if self._trust is None or self._trust.digest != accepted.digest:
                    self._trust = accepted
                    self._write_visible()
            case v2.IndexDocument():
                if accepted.digest in (self.index_digest, self._pending.digest if self._pending else None):
                    return False
                self._pending = accepted
            case _:
                self._write_object(accepted)
        return self._promote()

    # ---- Inside -----------------------------------------------------------------------------------------------------

    def _entries(self, kind: v2.Kind) -> list[v2.IndexEntry]:
        index = self.index()
        return [entry for entry in index.entries if entry.kind is kind] if index else []

    def _has(self, entry: v2.IndexEntry) -> bool:
        if entry.kind is v2.Kind.TRUST:
            trust = self.trust()
            return trust is not None and trust.generation >= entry.generation
        return entry.digest in self._held

    def _check_order(self, accepted: Accepted) -> None:
        document = accepted.document
        if isinstance(document, v2.TrustDocument):
            trust = self.trust()
            same = self._trust is not None and self._trust.digest == accepted.digest
            if trust is not None and not same and document.generation <= trust.generation:
                raise Refused(Reason.OLDER, f"trust list {document.generation} after {trust.generation}")
            return
        if isinstance(document, v2.IndexDocument):
            newest = self.newest_index()
            if newest and (document.epoch, document.revision) < (newest[0].epoch, newest[0].revision):
                raise Refused(Reason.OLDER, f"index {document.epoch}.{document.revision} after a newer one")
            return
        for entry in self._entries(kind_of(document)):
            held = self._held.get(entry.digest)
            if entry.name == document.name and held is not None:
                ours = (held.document.epoch, held.document.generation)
                if (document.epoch, document.generation) < ours:
                    kind = entry.kind.value
                    raise Refused(Reason.OLDER, f"{kind} {document.name} generation {document.generation} after {ours}")

    def _promote(self) -> bool:
        """Make the pending index visible if all that it names is here."""
        if self._pending is None or self.missing():
            return False
        before = self._kept_candidates()
        self._index, self._pending = self._pending, None
        self._kept = {name: before[name] for name in self.needs_upgrade() if name in before}
        self._write_visible()
        self._collect()
        return True

    def _kept_candidates(self) -> dict[str, str]:
        """Return, by pipeline, the digest of the document that it runs now."""
        running: dict[str, str] = {}
        for entry in self._entries(v2.Kind.PIPELINE):
            stands_in = isinstance(self._held[entry.digest].document, v2.RequiresDocument)
            held = self._kept.get(entry.name) if stands_in else entry.digest
            if held is not None:
                running[entry.name] = held
        return running

    def _collect(self) -> None:
        """Forget the documents that neither an index names nor a pipeline keeps."""
        named = set(self._kept.values())
        for index in (self.index(), _as_index(self._pending)):
            if index is not None:
                named.update(entry.digest for entry in index.entries)
        for gone in [each for each in self._held if each not in named]:
            del self._held[gone]
            self._path(gone).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._objects / f"{name}.json"

    def _write_object(self, accepted: Accepted) -> None:
        if accepted.digest in self._held:
            return
        if len(self._held) >= OBJECTS_MAX:
            self._collect()
        _write_whole(self._path(accepted.digest), accepted.text.encode())
        self._held[accepted.digest] = accepted

    def _write_visible(self) -> None:
        body = msgspec.json.encode(
            _Visible(
                trust=self._trust.text if self._trust else None,
                index=self._index.text if self._index else None,
                kept=self._kept,
            )
        )
        checksum = hashlib.sha256(body).hexdigest()
        _write_whole(
            self._folder / VISIBLE, msgspec.json.encode(_File(checksum=checksum, body=msgspec.Raw(body))) + b"\n"
        )

    def _load(self) -> None:
        for path in self._objects.iterdir() if self._objects.exists() else ():
            # Beside a running agent a file may go while the folder is read.
            with contextlib.suppress(FileNotFoundError):
                held = _read(path.read_bytes()) if path.suffix == ".json" else None
                if held is not None and held.digest == path.stem:
                    self._held[held.digest] = held
                elif not self._reads_only:
                    path.unlink(missing_ok=True)
        visible = _read_visible(self._folder / VISIBLE)
        self._kept = visible.kept
        self._trust = _read(visible.trust.encode()) if visible.trust else None
        # Through `pending`: a document that rotted on the disk is missing, and its index waits until it is here again.
        self._pending = _read(visible.index.encode()) if visible.index else None
        if self._pending is not None and not self.missing():
            self._index, self._pending = self._pending, None


def _as_index(accepted: Accepted | None) -> v2.IndexDocument | None:
    document = accepted.document if accepted else None
    return document if isinstance(document, v2.IndexDocument) else None


def _read(text: bytes) -> Accepted | None:
    """Decode a stored envelope. Its signature was checked on acceptance, and is not asked for again."""
    try:
        signed = open_signed(text)
        raw = bytes(signed.body)
        document: Document = decode_document(raw, signed.contract)
    except (EnvelopeError, UnicodeDecodeError):
        return None
    return Accepted(signed.contract, text.decode(), raw, digest(raw), document)


def _read_visible(path: Path) -> _Visible:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        if hashlib.sha256(file.body).hexdigest() != file.checksum:
            return _Visible()
        return msgspec.json.decode(file.body, type=_Visible)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return _Visible()


def _write_whole(path: Path, content: bytes) -> None:
    """Replace `path` so that a reader, or a boot after a power loss, sees the old content or the new."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
