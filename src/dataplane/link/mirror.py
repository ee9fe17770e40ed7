"""A copy of the accepted documents in the leaf, so that a new node of the data plane boots with the hub away.

One key a document: `v<contract>.<kind>.<name>`, and the index under `v<contract>.index.index`, written last. Whoever reads
checks every signature again, so that the copy needs no trust; whoever finds the bucket gone or a key missing writes it
again. Called by the link at each connect, after each change, and with every sync.
"""

import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.kv import KeyValue

from contracts import v2
from contracts.envelope import PAYLOAD_BYTES_MAX
from dataplane.link.store import DocumentStore

BUCKET = "documents"
STREAM = f"KV_{BUCKET}"
BUCKET_BYTES_MAX = 64 << 20


def key_of(contract: int, kind: v2.Kind, name: str) -> str:
    """Return the key of a document in the bucket."""
    return f"v{contract}.{kind.value}.{name}"


async def load(context: JetStreamContext, contract: int) -> list[str]:
    """Return the envelopes in the bucket: the trust list first, the index last. Empty when there is no bucket.

    Raises:
        nats.errors.Error: the leaf does not answer.
    """
    try:
        present = await _keys(context, contract)
        bucket = await context.key_value(BUCKET)
    except (nats.js.errors.NotFoundError, nats.js.errors.BucketNotFoundError):
        return []
    trust, index = f"v{contract}.{v2.Kind.TRUST.value}.", f"v{contract}.{v2.Kind.INDEX.value}."
    ordered = sorted(present, key=lambda key: (not key.startswith(trust), key.startswith(index), key))
    return [text for key in ordered if (text := await _get(bucket, key)) is not None]


async def save(context: JetStreamContext, store: DocumentStore, contract: int) -> None:
    """Make the bucket hold what the store shows, and nothing else of this contract version.

    Raises:
        nats.errors.Error: the leaf does not answer, or refuses.
    """
    texts = {key_of(contract, kind, name): text for (kind, name), text in store.texts().items()}
    index_key = key_of(contract, v2.Kind.INDEX, v2.Kind.INDEX.value)
    if index_key not in texts:
        return
    bucket = await context.create_key_value(
        KeyValueConfig(
            bucket=BUCKET,
            history=1,
            storage=StorageType.FILE,
            max_bytes=BUCKET_BYTES_MAX,
            max_value_size=PAYLOAD_BYTES_MAX,
        )
    )
    present = await _keys(context, contract)
    for key, text in sorted(texts.items(), key=lambda item: item[0] == index_key):
        if key not in present or await _get(bucket, key) != text:
            await bucket.put(key, text.encode())
    for key in present - texts.keys():
        await context.purge_stream(STREAM, subject=f"$KV.{BUCKET}.{key}")


async def _keys(context: JetStreamContext, contract: int) -> set[str]:
    prefix = f"$KV.{BUCKET}."
    info = await context.stream_info(STREAM, subjects_filter=f"{prefix}v{contract}.>")
    return {subject.removeprefix(prefix) for subject in info.state.subjects or {}}


async def _get(bucket: KeyValue, key: str) -> str | None:
    try:
        entry = await bucket.get(key)
    except nats.js.errors.KeyNotFoundError:
        return None
    return entry.value.decode() if entry.value is not None else None
