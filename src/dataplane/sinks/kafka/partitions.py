"""Which partition each record goes to: as every Java client's default partitioner has it, for all keys at once.

In flow the records' keys; out flow partition numbers. A topic that others write to by key too has a key in one place
only, and consumers that join topics by key find both sides in partitions of the same number. Pure; called by `delivery`.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_SEED = np.uint32(0x9747B28C)
_M = np.uint32(0x5BD1E995)
_R = np.uint32(24)


def partitions(keys: pa.BinaryArray, count: int) -> npt.NDArray[np.int64]:
    """Return the partition of each key, of `count` partitions: murmur2 of its bytes. No key is null."""
    offsets = np.frombuffer(keys.buffers()[1], dtype=np.int32)[keys.offset : keys.offset + len(keys) + 1]
    data = np.frombuffer(keys.buffers()[2] or b"", dtype=np.uint8)
    lengths = np.diff(offsets)
    hashes = np.empty(len(keys), dtype=np.uint32)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        hashes[rows] = _murmur2(data[offsets[rows][:, None] + np.arange(length)])
    return (hashes & np.uint32(0x7FFFFFFF)).astype(np.int64) % count


def _murmur2(keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return the hashes of keys of one length: a row of bytes each."""
    count, length = keys.shape
    hashed = np.full(count, _SEED ^ np.uint32(length), dtype=np.uint32)
    words = np.ascontiguousarray(keys[:, : length & ~3]).view("<u4") if length >= 4 else np.empty((count, 0), np.uint32)
    for number in range(words.shape[1]):
        word = words[:, number] * _M
        word ^= word >> _R
        hashed = (hashed * _M) ^ (word * _M)
    rest = keys[:, length & ~3 :]
    if rest.shape[1]:
        for number in range(rest.shape[1]):
            hashed ^= rest[:, number].astype(np.uint32) << np.uint32(8 * number)
        hashed *= _M
    hashed ^= hashed >> np.uint32(13)
    hashed *= _M
    hashed ^= hashed >> np.uint32(15)
    return hashed
