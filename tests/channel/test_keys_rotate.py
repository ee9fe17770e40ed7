"""The keys folder through rotations: what signs, what is trusted, and what the hub shows, step by step."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from tests.channel.servers import TENANT

from contracts.keys import KeyPair, Role
from controlplane.channel import keys
from controlplane.channel.accounts import Accounts
from controlplane.channel.leaf_admission import Kept, _token_subject

URL = "tls://hub.example.com:7422"


def _signer_of_hub(folder: Path) -> int:
    """Return which authority, counted from the newest, signed the hub's certificate."""
    shown = x509.load_pem_x509_certificate((folder / "hub.pem").read_bytes())
    (found,) = [number for number, each in enumerate(keys.read(folder).authorities) if each.has_signed(shown)]
    return found


def test_the_hub_is_known_by_the_oldest_authority_until_that_is_retired(folder: Path) -> None:
    """So no leaf ever meets a hub whose authority it has not had for a whole rotation; the list's number grows each time."""
    keys.create(folder)
    keys.hub_certificate(folder, URL)
    shown = (folder / "hub.pem").read_bytes()
    numbers = [keys.read(folder).trust.number]
    with pytest.raises(ValueError, match="rotate before"):
        keys.retire_authority(folder)
    keys.rotate_authority(folder)
    numbers.append(keys.read(folder).trust.number)
    keys.hub_certificate(folder, URL)
    assert (folder / "hub.pem").read_bytes() == shown
    assert _signer_of_hub(folder) == 1
    assert (folder / "ca.pem").read_text().count("BEGIN CERTIFICATE") == 2
    keys.retire_authority(folder)
    numbers.append(keys.read(folder).trust.number)
    keys.hub_certificate(folder, URL)
    assert (folder / "hub.pem").read_bytes() != shown
    assert _signer_of_hub(folder) == 0
    assert len(keys.read(folder).authorities) == 1
    assert numbers == sorted(set(numbers))


def test_the_hubs_certificate_is_for_the_host_that_leaves_dial_and_is_renewed_in_time(folder: Path) -> None:
    """Another host, or half of its life gone, and it is made anew."""
    keys.create(folder)
    now = dt.datetime.now(dt.UTC)
    made = []
    for url, days in ((URL, 0), (URL, 190), (URL, 210), ("wss://192.0.2.7", 210)):
        keys.hub_certificate(folder, url, now=now + dt.timedelta(days=days))
        made.append((folder / "hub.pem").read_bytes())
    assert made[0] == made[1]
    assert len(set(made)) == 3
    names = x509.load_pem_x509_certificate(made[-1]).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [str(name.value) for name in names.value] == ["192.0.2.7"]


def test_a_token_by_the_issuer_before_is_good_until_it_is_retired(folder: Path) -> None:
    """And one of an issuer to come, or of the account itself after its turn, is none."""
    keys.create(folder)
    leaf = KeyPair.generate(Role.USER)

    def now() -> Accounts:
        return Accounts(keys.read(folder), certificates=True)

    account = now().account_key(TENANT)
    tokens = [now().leaf_credentials(TENANT, "local", leaf.public)]
    for _ in range(2):
        keys.rotate_accounts(folder)
        tokens.append(now().leaf_credentials(TENANT, "local", leaf.public))
    assert now().account_key(TENANT) == account, "the tenant keeps its address"
    assert [_token_subject(account, each, now().issuers(TENANT)) for each in tokens] == [leaf.public] * 3
    keys.retire_accounts(folder)
    judged = [_token_subject(account, each, now().issuers(TENANT)) for each in tokens]
    assert judged == [Kept.BAD_TOKEN, Kept.BAD_TOKEN, leaf.public]


def test_a_folder_of_before_there_were_authorities_gets_one_under_a_new_number(folder: Path) -> None:
    """Nodes never take another content under the number that they have."""
    keys.create(folder)
    before = keys.read(folder)
    for name in ("ca-1.pem", "ca-1.key", "ca.pem"):
        (folder / name).unlink()
    assert keys.read(folder).authorities == ()
    keys.create(folder)
    after = keys.read(folder)
    assert len(after.authorities) == 1
    assert after.trust.number == before.trust.number + 1
    assert after.trust.keys == before.trust.keys
