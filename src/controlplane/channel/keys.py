"""The channel's secret keys: files in one folder that only their owner reads.

- `operator.nk` signs accounts at the hub.
- `master.key` is 32 bytes in hex that all accounts' keys are derived from, so that no account key is state.
- `root.nk` signs the numbered list of online keys; nodes pin its public half when they join. It is used when a data plane
  is made and when the list changes, never for a document.
- `signing.nk` signs documents. `trust.json` is the list of the keys that may.
- `ca-1.pem` and `ca-1.key`, and those with higher numbers after a rotation, are the authorities (see `authority`) that sign
  certificates for leaves and for the hub. All that are there are trusted; their certificates go to nodes with the list.
- `accounts.json` are the numbers of the keys that sign leaves' tokens, derived as the accounts' own; none is 1.
- `ca.pem` holds all of their certificates, for the hub to read; `hub.pem` and `hub.key` are what the hub shows.

`pointsman up` makes them with `create`; the control plane reads them once at its start with `read`.
"""

import datetime as dt
import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from contracts.keys import KeyPair, Role
from controlplane.channel import authority
from controlplane.channel.authority import AUTHORITIES_MAX, Authority

OPERATOR, MASTER, ROOT, SIGNING, TRUST = "operator.nk", "master.key", "root.nk", "signing.nk", "trust.json"
AUTHORITIES, HUB_CERTIFICATE, HUB_KEY = "ca.pem", "hub.pem", "hub.key"
ACCOUNTS = "accounts.json"
TRUSTED_KEYS_MAX = 8


class TrustList(Struct, frozen=True, kw_only=True):
    """The online keys whose signatures nodes accept. `number` grows with every change."""

    number: int
    keys: list[str]


class AccountNumbers(Struct, frozen=True, kw_only=True):
    """Which keys may have signed a leaf's token: those from `oldest` to `number`, which signs now."""

    number: int = 1
    oldest: int = 1


class ChannelKeys:
    """All keys of the channel, read into memory. It prints nothing of them."""

    def __init__(
        self,
        *,
        operator: KeyPair,
        root: KeyPair,
        signing: KeyPair,
        master: bytes,
        trust: TrustList,
        authorities: Sequence[Authority] = (),
        accounts: AccountNumbers = AccountNumbers(),  # noqa: B008 - a frozen value
    ) -> None:
        self.operator = operator
        self.root = root
        self.signing = signing
        self.trust = trust
        self.authorities = tuple(authorities)
        """The newest first. None in a folder that was made before there were any."""
        self.accounts = accounts
        self._master = master

    def derive(self, label: str, role: Role = Role.ACCOUNT) -> KeyPair:
        """Return the key that belongs to `label`: HKDF-SHA-256 of the master secret (RFC 5869, one block)."""
        extracted = hmac.digest(b"pointsman/channel", self._master, hashlib.sha256)
        return KeyPair.derive(role, hmac.digest(extracted, label.encode() + b"\x01", hashlib.sha256))


def create(folder: Path) -> None:
    """Make the keys that are missing in `folder`. What is there is never replaced."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, role in ((OPERATOR, Role.OPERATOR), (ROOT, Role.ACCOUNT), (SIGNING, Role.ACCOUNT)):
        _write_once(folder / name, KeyPair.generate(role).seed)
    _write_once(folder / MASTER, os.urandom(32).hex())
    signing = KeyPair((folder / SIGNING).read_text())
    if not _authority_numbers(folder):
        _add_authority(folder, 1)
        if (folder / TRUST).exists():
            # Made before there were authorities: nodes never take in another content under the same number.
            _write_trust(folder, _read_trust(folder).keys)
    _write_once(folder / TRUST, msgspec.json.encode(TrustList(number=1, keys=[signing.public])).decode())


def rotate_signing(folder: Path) -> None:
    """Make a new signing key and a list with one number more that trusts it and the keys before it.

    Takes effect with the control plane's next start, which signs everything again.

    Raises:
        ValueError: the list is full; take keys out of `trust.json` that sign no more, and raise its number.
    """
    trust = _read_trust(folder)
    if len(trust.keys) >= TRUSTED_KEYS_MAX:
        raise ValueError(f"{folder / TRUST} lists {TRUSTED_KEYS_MAX} keys already; take out those that sign no more")
    key = KeyPair.generate(Role.ACCOUNT)
    # The list first: a key that is trusted and not used harms nobody, one that is used and not trusted stops changes.
    _write_trust(folder, [key.public, *trust.keys])
    _replace(folder / SIGNING, key.seed)


def retire_signing(folder: Path) -> None:
    """Trust no key but the one that signs now. Nodes that have seen the rotation know no difference."""
    _write_trust(folder, [KeyPair((folder / SIGNING).read_text()).public])


def rotate_authority(folder: Path) -> None:
    """Make another authority, which signs leaves' certificates from now on. The hub's stays the oldest's until that retires.

    Raises:
        ValueError: there are too many already; retire the oldest first.
    """
    _add_authority(folder, _authority_numbers(folder)[0] + 1)
    _write_trust(folder, _read_trust(folder).keys)


def retire_authority(folder: Path) -> None:
    """Trust the oldest authority no more. Leaves must know the next one by now, and have certificates that are not its.

    Raises:
        ValueError: it is the only one.
    """
    numbers = _authority_numbers(folder)
    if len(numbers) < 2:
        raise ValueError(f"{folder} holds one authority; rotate before you retire it")
    (folder / f"ca-{numbers[-1]}.pem").unlink()
    (folder / f"ca-{numbers[-1]}.key").unlink()
    _write_bundle(folder)
    _write_trust(folder, _read_trust(folder).keys)


def rotate_accounts(folder: Path) -> None:
    """Have another key of each tenant's account sign leaves' tokens. Tokens by the keys before it stay good until they retire."""
    before = _read_accounts(folder)
    _write_accounts(folder, AccountNumbers(number=before.number + 1, oldest=before.oldest))


def retire_accounts(folder: Path) -> None:
    """Let no token be good but those of the keys that sign now. Leaves must have theirs by now."""
    before = _read_accounts(folder)
    _write_accounts(folder, AccountNumbers(number=before.number, oldest=before.number))


def _write_accounts(folder: Path, numbers: AccountNumbers) -> None:
    _replace(folder / ACCOUNTS, msgspec.json.encode(numbers).decode())
    _write_trust(folder, _read_trust(folder).keys)


def hub_certificate(folder: Path, leaf_url: str, *, now: dt.datetime | None = None) -> None:
    """Make the certificate that the hub shows to leaves, if there is none that is good for the first half of its life.

    It is for the host of `leaf_url`, where leaves find the hub. The oldest authority signs it. The hub reads it at its start
    and with SIGHUP.

    Raises:
        OSError, ValueError: the authorities cannot be read, or `leaf_url` names no host.
    """
    now = now or dt.datetime.now(dt.UTC)
    host = urlsplit(leaf_url).hostname
    if not host:
        raise ValueError("the address at which leaves reach the hub names no host")
    oldest = _read_authorities(folder)[-1]
    if not authority.holds_for(folder / HUB_CERTIFICATE, [host], oldest, now) or not (folder / HUB_KEY).exists():
        certificate, key = oldest.issue_hub([host], now=now)
        _replace(folder / HUB_KEY, key)
        _replace(folder / HUB_CERTIFICATE, certificate)
    _write_bundle(folder)


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
    trust = _read_trust(folder)
    if pairs[SIGNING].public not in trust.keys:
        raise ValueError(f"{folder / TRUST} does not trust the key of {SIGNING}: nodes would refuse every document")
    return ChannelKeys(
        operator=pairs[OPERATOR],
        root=pairs[ROOT],
        signing=pairs[SIGNING],
        master=master,
        trust=trust,
        authorities=_read_authorities(folder),
        accounts=_read_accounts(folder),
    )


def _read_accounts(folder: Path) -> AccountNumbers:
    path = folder / ACCOUNTS
    try:
        return msgspec.json.decode(path.read_bytes(), type=AccountNumbers) if path.exists() else AccountNumbers()
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} holds no numbers of accounts' keys") from error


def _read_trust(folder: Path) -> TrustList:
    try:
        return msgspec.json.decode((folder / TRUST).read_bytes(), type=TrustList)
    except msgspec.DecodeError as error:
        raise ValueError(f"{folder / TRUST} is not a list of trusted keys") from error


def _write_trust(folder: Path, keys: list[str]) -> None:
    """Write the list with one number more."""
    _replace(folder / TRUST, msgspec.json.encode(TrustList(number=_read_trust(folder).number + 1, keys=keys)).decode())


def _authority_numbers(folder: Path) -> list[int]:
    """Return the numbers of the authorities, the newest first."""
    found = (re.fullmatch(r"ca-([0-9]{1,6})\.pem", path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _read_authorities(folder: Path) -> tuple[Authority, ...]:
    numbers = _authority_numbers(folder)
    return tuple(Authority.read(folder / f"ca-{each}.pem", folder / f"ca-{each}.key") for each in numbers)


def _add_authority(folder: Path, number: int) -> None:
    if len(_authority_numbers(folder)) >= AUTHORITIES_MAX:
        raise ValueError(f"{folder} holds {AUTHORITIES_MAX} authorities already; retire the oldest")
    made = Authority.make(dt.datetime.now(dt.UTC))
    # Its certificate last, because its presence says that the authority is there.
    _replace(folder / f"ca-{number}.key", made.key_pem())
    _replace(folder / f"ca-{number}.pem", made.pem)
    _write_bundle(folder)


def _write_bundle(folder: Path) -> None:
    _replace(folder / AUTHORITIES, "".join(each.pem for each in _read_authorities(folder)))


def _write_once(path: Path, content: str) -> None:
    if not path.exists():
        _replace(path, content)


def _replace(path: Path, content: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content if content.endswith("\n") else content + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
