"""The channel's secret keys: files in one folder that only their owner reads.

- `operator.nk` signs accounts at the hub.
- `master.key` is 32 bytes in hex that all accounts' keys are derived from, so that no account key is state.
- `root.nk` signs the numbered list of online keys; nodes pin its public half when they join. It is used when a data plane
  is made and when the list changes, never for a document.
- `signing.nk` signs documents. `trust.json` is the list of the keys that may.

`pointsman up` makes them with `create`; the control plane reads them once at its start with `read`.
"""

import hashlib
import hmac
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from contracts.keys import KeyPair, Role

OPERATOR, MASTER, ROOT, SIGNING, TRUST = "operator.nk", "master.key", "root.nk", "signing.nk", "trust.json"
TRUSTED_KEYS_MAX = 8


class TrustList(Struct, frozen=True, kw_only=True):
    """The online keys whose signatures nodes accept. `number` grows with every change."""

    number: int
    keys: list[str]


class ChannelKeys:
    """All keys of the channel, read into memory. It prints nothing of them."""

    def __init__(self, *, operator: KeyPair, root: KeyPair, signing: KeyPair, master: bytes, trust: TrustList) -> None:
        self.operator = operator
        self.root = root
        self.signing = signing
        self.trust = trust
        self._master = master

    def derive(self, label: str) -> KeyPair:
        """Return the account key that belongs to `label`: HKDF-SHA-256 of the master secret (RFC 5869, one block)."""
        extracted = hmac.digest(b"pointsman/channel", self._master, hashlib.sha256)
        return KeyPair.derive(Role.ACCOUNT, hmac.digest(extracted, label.encode() + b"\x01", hashlib.sha256))


def create(folder: Path) -> None:
    """Make the keys that are missing in `folder`. What is there is never replaced."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, role in ((OPERATOR, Role.OPERATOR), (ROOT, Role.ACCOUNT), (SIGNING, Role.ACCOUNT)):
        _write_once(folder / name, KeyPair.generate(role).seed)
    _write_once(folder / MASTER, os.urandom(32).hex())
    signing = KeyPair((folder / SIGNING).read_text())
    _write_once(folder / TRUST, msgspec.json.encode(TrustList(number=1, keys=[signing.public])).decode())


def rotate_signing(folder: Path) -> None:
    """Make a new signing key and a list with one number more that trusts it and the keys before it.

    Takes effect with the control plane's next start, which signs everything again.

    Raises:
        ValueError: the list is full; take keys out of `trust.json` that sign no more, and raise its number.
    """
    trust = msgspec.json.decode((folder / TRUST).read_bytes(), type=TrustList)
    if len(trust.keys) >= TRUSTED_KEYS_MAX:
        raise ValueError(f"{folder / TRUST} lists {TRUSTED_KEYS_MAX} keys already; take out those that sign no more")
    key = KeyPair.generate(Role.ACCOUNT)
    # The list first: a key that is trusted and not used harms nobody, one that is used and not trusted stops changes.
    _replace(
        folder / TRUST,
        msgspec.json.encode(TrustList(number=trust.number + 1, keys=[key.public, *trust.keys])).decode(),
    )
    _replace(folder / SIGNING, key.seed)


def read(folder: Path) -> ChannelKeys:
    """Read the keys.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file does not hold what it should. The text names the file and quotes nothing.
    """
    pairs: dict[str, KeyPair] = {}
    for name in (OPERATOR, ROOT, SIGNING):
        try:
            pairs[name] = KeyPair((folder / name).read_text())
        except ValueError as error:
            raise ValueError(f"{folder / name} holds no nkey seed") from error
    try:
        master = bytes.fromhex((folder / MASTER).read_text().strip())
    except ValueError:
        master = b""
    if len(master) != 32:
        raise ValueError(f"{folder / MASTER} does not hold 64 hex digits")
    try:
        trust = msgspec.json.decode((folder / TRUST).read_bytes(), type=TrustList)
    except msgspec.DecodeError as error:
        raise ValueError(f"{folder / TRUST} is not a list of trusted keys") from error
    if pairs[SIGNING].public not in trust.keys:
        raise ValueError(f"{folder / TRUST} does not trust the key of {SIGNING}: nodes would refuse every document")
    return ChannelKeys(operator=pairs[OPERATOR], root=pairs[ROOT], signing=pairs[SIGNING], master=master, trust=trust)


def _write_once(path: Path, content: str) -> None:
    if not path.exists():
        _replace(path, content)


def _replace(path: Path, content: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
