"""The audit chain: whoever edits, deletes, inserts, reorders or cuts off an entry is found out."""

from collections.abc import Callable
from datetime import datetime

import msgspec
import pytest
from msgspec import structs
from tests.controlplane.conftest import Served, Tenant

from contracts import envelope
from contracts.audit import AuditEntry, Checkpoint, Finding, Verified, entry_hash, verify
from contracts.envelope import Purpose
from contracts.keys import KeyPair, Role

Entries = list[AuditEntry]


class Log:
    """What somebody who verifies has fetched."""

    def __init__(self, tenant: Tenant) -> None:
        latest = tenant.served.control_plane.log.latest()
        read = lambda path, **more: tenant.api.get(f"/v1/audit/{path}", params={"at_least": latest, **more}).json()  # noqa: E731
        self.entries = msgspec.convert(read("entries", limit=200)["items"], Entries)
        self.checkpoint: str = read("checkpoint")["checkpoint"]
        self.key: str = tenant.api.get("/v1/audit/key").json()["key"]
        self.tenant = tenant.id

    def verify(self, entries: Entries | None = None) -> Verified | list[Finding]:
        return verify(self.entries if entries is None else entries, self.checkpoint, self.key)


@pytest.fixture(scope="module")
def log(standing: Tenant) -> Log:
    return Log(standing)


def test_an_untouched_log_verifies(log: Log) -> None:
    """All of a tenant's events are in it, from its creation on, and the checkpoint vouches for the last one."""
    assert log.entries[0].type == "TenantCreated"
    last = log.entries[-1]
    assert log.verify() == Verified(entries=len(log.entries), checkpoint=last.sequence, hash=last.hash)


def _rehash(log: Log, entries: Entries) -> Entries:
    """What a forger does: make every hash right again, from the first entry on."""
    forged: Entries = []
    previous = "0" * 64
    for number, entry in enumerate(entries, start=1):
        changed = structs.replace(entry, sequence=number, previous=previous, hash="")
        forged.append(structs.replace(changed, hash=entry_hash(log.tenant, changed)))
        previous = forged[-1].hash
    return forged


TAMPERINGS: dict[str, Callable[[Entries], Entries]] = {
    "edit the payload": lambda it: [*it[:2], structs.replace(it[2], payload="{}"), *it[3:]],
    "edit the actor": lambda it: [*it[:2], structs.replace(it[2], actor="key:else"), *it[3:]],
    "edit the time": lambda it: [*it[:2], structs.replace(it[2], at="2026-01-01T00:00:00Z"), *it[3:]],
    "edit the name": lambda it: [structs.replace(it[0], name="else"), *it[1:]],
    "delete the first": lambda it: it[1:],
    "delete one": lambda it: [*it[:2], *it[3:]],
    "insert one": lambda it: [*it[:3], it[1], *it[3:]],
    "swap two": lambda it: [*it[:1], it[2], it[1], *it[3:]],
    "cut the tail": lambda it: it[:-1],
    "cut everything": lambda it: [],
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_tampered_log_does_not_verify(log: Log, tampering: str) -> None:
    """Whether only the entries were touched or all hashes were made again afterwards."""
    tampered = TAMPERINGS[tampering](log.entries)
    assert isinstance(log.verify(tampered), list)
    assert isinstance(log.verify(_rehash(log, tampered)), list)


def test_a_finding_names_the_entry(log: Log) -> None:
    """One edit gives one finding, at its own entry."""
    findings = log.verify(TAMPERINGS["edit the actor"](log.entries))
    assert isinstance(findings, list)
    assert [each.sequence for each in findings] == [3]


def test_a_checkpoint_of_somebody_else_is_not_believed(log: Log) -> None:
    """Neither another key's, nor another purpose's, nor another tenant's, nor a changed one."""
    forger = KeyPair.generate(Role.ACCOUNT)
    last = log.entries[-1]
    body = Checkpoint(tenant=log.tenant, sequence=last.sequence, hash=last.hash, at=_at(last.at))
    forged = envelope.sign(body, forger, contract=2, purpose=Purpose.CHECKPOINT).decode()
    wrong_purpose = envelope.sign(body, forger, contract=2, purpose=Purpose.REPORT).decode()
    for checkpoint, key in (
        (forged, log.key),
        (wrong_purpose, forger.public),
        (log.checkpoint.replace('"sequence":', '"sequence":1'), log.key),
        ("{}", log.key),
        ("", log.key),
    ):
        findings = verify(log.entries, checkpoint, key)
        assert isinstance(findings, list)
        assert findings[0].sequence == 0
    assert isinstance(verify(log.entries, forged, forger.public), Verified)


def _at(text: str) -> datetime:
    return msgspec.convert(text, datetime)


def test_an_older_checkpoint_vouches_for_its_part(shop: Tenant) -> None:
    """Kept outside, it still proves that nothing before it was changed, however the log grew."""
    old = Log(shop)
    shop.api.post("/v1/pipelines/orders/pause").raise_for_status()
    new = Log(shop)
    assert len(new.entries) == len(old.entries) + 1
    verified = verify(new.entries, old.checkpoint, old.key)
    assert isinstance(verified, Verified)
    assert (verified.entries, verified.checkpoint) == (len(new.entries), len(old.entries))
    assert isinstance(verify(_rehash(new, TAMPERINGS["edit the actor"](new.entries)), old.checkpoint, old.key), list)


def test_an_edit_in_the_database_is_found(served: Served, shop: Tenant) -> None:
    """Also by somebody who may write every table."""
    with served.administrator() as connected:
        connected.execute(
            "UPDATE audit_entries SET actor = 'key:innocent' WHERE tenant = %s AND sequence = 3", [shop.id]
        )
    findings = Log(shop).verify()
    assert isinstance(findings, list)
    assert findings[0] == Finding(3, "was edited: its hash does not match its content")


def test_the_same_head_is_always_the_same_checkpoint(standing: Tenant) -> None:
    """Two that were fetched at different times can be compared byte for byte."""
    assert Log(standing).checkpoint == Log(standing).checkpoint


def test_a_log_that_has_stopped_is_not_shown_as_if_it_were_whole(served: Served, shop: Tenant) -> None:
    """What is missing would look as if it had not happened."""
    with served.administrator() as connected:
        connected.execute(
            "INSERT INTO projection_quarantines (projection, tenant, event_id, event_type, error, at)"
            " VALUES ('audit', %s, 1, 'TenantCreated', 'KeyError', now())",
            [shop.id],
        )
    for path in ("/v1/audit/entries", "/v1/audit/checkpoint", "/v1/events"):
        assert shop.api.get(path).json()["code"] == "audit_unavailable"
