"""Enrolment: a token lets one node in, once, also when many try at the same moment."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.controlplane.conftest import Served, Tenant, problem, user_key

from contracts import envelope, identity, v2
from contracts.envelope import Purpose
from contracts.keys import KeyPair, Role
from controlplane.commands.data_planes import JOIN_TOKEN_HOURS


@pytest.fixture
def token(tenant: Tenant) -> str:
    """A join token of a fresh data plane `local`."""
    tenant.put("/v1/data-planes/local", {}).raise_for_status()
    issued: str = tenant.api.post("/v1/data-planes/local/join-tokens").json()["token"]
    return issued


def enrol(served: Served, token: str, **changes: Any) -> httpx.Response:
    """Send an enrolment, without any API key."""
    body = {"token": token, "node": "node-1", "node_key": user_key(), "leaf_key": None, "contract": 2, **changes}
    return httpx.post(f"{served.url}/v1/enrol", json=body, timeout=30)


def test_a_node_joins_with_what_it_needs_to_trust(served: Served, tenant: Tenant, token: str) -> None:
    """The answer names the tenant's account, pins the root key and holds a list of keys that the root key signed."""
    key, leaf_key = user_key(), user_key()
    joined = enrol(served, token, node_key=key, leaf_key=leaf_key).json()
    assert (joined["tenant"], joined["data_plane"], joined["node"]) == (tenant.id, "local", "node-1")
    assert joined["hub_leaf_url"] == "nats://hub.example:7422"
    signed = envelope.open_signed(joined["trust"])
    envelope.verify(signed, keys=frozenset({joined["root_key"]}), purpose=Purpose.DOCUMENT)
    assert joined["leaf_jwt"].count(".") == 2
    node = tenant.api.get("/v1/nodes/node-1").json()
    assert (node["key"], node["data_plane"], node["status"]["phase"]) == (key, "local", "never_seen")
    plane = tenant.api.get("/v1/data-planes/local").json()
    assert (plane["status"]["nodes_total"], plane["status"]["leaves"]) == (1, 1)


def test_a_token_works_once_but_the_same_node_may_repeat_itself(served: Served, tenant: Tenant, token: str) -> None:
    """A node that lost the answer asks again with its key and gets it; another one does not."""
    key, leaf_key = user_key(), user_key()
    first = enrol(served, token, node_key=key, leaf_key=leaf_key).json()
    again = enrol(served, token, node_key=key, leaf_key=leaf_key)
    assert again.status_code == 200
    assert {**again.json(), "leaf_jwt": None} == {**first, "leaf_jwt": None}
    problem(enrol(served, token), 409, "token_used")
    problem(enrol(served, token, node="node-2", node_key=key), 409, "token_used")
    problem(enrol(served, token, node_key=key, leaf_key=user_key()), 409, "token_used")
    assert [each["name"] for each in tenant.api.get("/v1/nodes").json()["items"]] == ["node-1"]


def test_a_leaf_gets_a_certificate_for_the_key_that_it_has_signed_for(served: Served, token: str) -> None:
    """It names the leaf by its nkey; for a key that the leaf has not signed there is none, and the token stays unused."""
    leaf, other = KeyPair.generate(Role.USER), KeyPair.generate(Role.USER)
    tls = ec.generate_private_key(ec.SECP256R1()).public_key()
    tls_key = identity.write_tls_key(tls.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
    asked = {"leaf_key": leaf.public, "leaf_tls_key": tls_key}
    for proof in (identity.prove(other, tls_key), identity.prove(leaf, "B" * 87), "A" * 86):
        refused = problem(enrol(served, token, **asked, leaf_tls_proof=proof), 422, "invalid_document")
        assert refused["errors"][0]["pointer"] == "/leaf_tls_proof"
    no_point = {"leaf_key": leaf.public, "leaf_tls_key": "B" + "A" * 86}
    proof = identity.prove(leaf, no_point["leaf_tls_key"])
    problem(enrol(served, token, **no_point, leaf_tls_proof=proof), 422, "invalid_document")
    joined = enrol(served, token, **asked, leaf_tls_proof=identity.prove(leaf, tls_key)).json()
    certificate = x509.load_pem_x509_certificate(joined["leaf_certificate"].encode())
    assert certificate.public_key() == tls
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [identity.leaf_uri(joined["tenant"], "local", leaf.public)]
    trust = json.loads(joined["trust"])["body"]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(trust["authorities"][0].encode()))


def test_a_leaf_that_cannot_link_gets_a_certificate_by_http(served: Served, token: str) -> None:
    """The node's signature says who asks; another node's, an altered request or another plane's leaf get none."""
    node, leaf, stranger = (KeyPair.generate(Role.USER) for _ in range(3))
    joined = enrol(served, token, node_key=node.public, leaf_key=leaf.public).json()
    tls = ec.generate_private_key(ec.SECP256R1()).public_key()
    tls_key = identity.write_tls_key(tls.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))

    def ask(signer: KeyPair, leaf_key: KeyPair, **changes: str) -> httpx.Response:
        proof = identity.prove(leaf_key, tls_key)
        wanted = v2.CertificateRequest(leaf_key=leaf_key.public, leaf_tls_key=tls_key, leaf_proof=proof)
        report = v2.Report(node="node-1", key=node.public, sequence=1, message=wanted)
        sealed = envelope.sign(report, signer, contract=2, purpose=Purpose.REPORT).decode()
        body = {"tenant": joined["tenant"], "data_plane": "local", "node": "node-1", "request": sealed, **changes}
        return httpx.post(f"{served.url}/v1/enrol/certificate", json=body, timeout=30)

    control_plane = served.control_plane
    assert control_plane.runners[0].wait_for(control_plane.log.latest(), 10)
    given = ask(node, leaf).json()
    assert x509.load_pem_x509_certificate(given["certificate"].encode()).public_key() == tls
    assert json.loads(given["trust"])["key"] == joined["root_key"]
    problem(ask(stranger, leaf), 403, "certificate_refused")
    problem(ask(node, stranger), 403, "certificate_refused")
    problem(ask(node, leaf, data_plane="other"), 403, "certificate_refused")
    problem(ask(node, leaf, node="node-2"), 403, "certificate_refused")
    problem(ask(node, leaf, tenant=str(uuid4())), 403, "certificate_refused")
    problem(ask(node, leaf, request="{}"), 403, "certificate_refused")


def test_of_many_nodes_that_race_for_a_token_one_gets_in(served: Served, tenant: Tenant, token: str) -> None:
    """All send it at the same moment."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: enrol(served, token, node=f"node-{number}"), range(8)))
    assert sorted(each.status_code for each in answers) == [200] + [409] * 7
    assert len(tenant.api.get("/v1/nodes").json()["items"]) == 1


def test_one_node_that_races_with_itself_gets_in(served: Served, tenant: Tenant, token: str) -> None:
    """Retries that overlap are answered alike."""
    key = user_key()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: enrol(served, token, node_key=key), range(6)))
    assert {each.status_code for each in answers} == {200}


def test_an_expired_token_lets_nobody_in(
    served: Served, tenant: Tenant, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is good for JOIN_TOKEN_HOURS."""
    path = served.control_plane.write_path
    clock = path._clock
    monkeypatch.setattr(path, "_clock", lambda: clock() + timedelta(hours=JOIN_TOKEN_HOURS, seconds=1))
    problem(enrol(served, token), 401, "invalid_token")


def test_a_token_of_a_deleted_data_plane_lets_nobody_in(served: Served, tenant: Tenant, token: str) -> None:
    """The data plane forgets its tokens and its nodes, even if its name is used again."""
    other = tenant.api.post("/v1/data-planes/local/join-tokens").json()["token"]
    enrol(served, other).raise_for_status()
    tenant.api.delete("/v1/data-planes/local").raise_for_status()
    problem(tenant.api.get("/v1/nodes/node-1"), 404, "not_found")
    problem(enrol(served, token), 401, "invalid_token")
    tenant.put("/v1/data-planes/local", {}).raise_for_status()
    problem(enrol(served, token), 401, "invalid_token")


def test_a_revoked_nodes_name_may_join_again(served: Served, tenant: Tenant, token: str) -> None:
    """With a new token and a new key; before that its name is taken."""
    enrol(served, token).raise_for_status()
    second = tenant.api.post("/v1/data-planes/local/join-tokens").json()["token"]
    problem(enrol(served, second), 409, "name_taken")
    tenant.api.delete("/v1/nodes/node-1").raise_for_status()
    problem(tenant.api.get("/v1/nodes/node-1"), 404, "not_found")
    assert enrol(served, second).status_code == 200


def test_a_token_repeated_under_one_idempotency_key_is_the_same_token(tenant: Tenant) -> None:
    """A lost answer can be asked for again, although the token is stored nowhere."""
    tenant.put("/v1/data-planes/local", {}).raise_for_status()
    headers = {"Idempotency-Key": "once"}
    first = tenant.api.post("/v1/data-planes/local/join-tokens", headers=headers)
    again = tenant.api.post("/v1/data-planes/local/join-tokens", headers=headers)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"


def _tampered(token: str) -> list[str]:
    prefix, tenant, plane, secret = token.split("_", 3)
    zeros = "0" * 32
    return [
        f"{prefix}_{zeros}_{plane}_{secret}",
        f"{prefix}_{tenant}_other_{secret}",
        f"{prefix}_{tenant}_{plane}_{secret[:-2]}AA",
        "pmj_x",
        "",
        "x" * 500,
    ]


def test_a_token_that_was_changed_lets_nobody_in(served: Served, tenant: Tenant, token: str) -> None:
    """Tenant and data plane in it are only an address; the secret belongs to both."""
    for odd in _tampered(token):
        problem(enrol(served, odd), 401, "invalid_token")
    assert enrol(served, token).status_code == 200


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"node": "Node 1"}, "invalid_document"),
        ({"node_key": "UABC"}, "invalid_document"),
        ({"node_key": KeyPair.generate(Role.ACCOUNT).public}, "invalid_document"),
        ({"leaf_key": KeyPair.generate(Role.OPERATOR).public}, "invalid_document"),
        ({"contract": 0}, "invalid_document"),
        ({"contract": "2"}, "invalid_document"),
        ({"tenant": "me"}, "unknown_field"),
    ],
)
def test_an_enrolment_with_a_fault_is_refused_and_uses_nothing_up(
    served: Served, tenant: Tenant, token: str, changes: dict[str, Any], code: str
) -> None:
    """The token still works afterwards."""
    problem(enrol(served, token, **changes), 422, code)
    assert enrol(served, token).status_code == 200


def test_open_tokens_are_bounded(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data plane has a limited number of unused tokens."""
    monkeypatch.setattr("controlplane.commands.data_planes.JOIN_TOKENS_OPEN_MAX", 2)
    tenant.put("/v1/data-planes/local", {}).raise_for_status()
    issue: Callable[[], httpx.Response] = lambda: tenant.api.post("/v1/data-planes/local/join-tokens")  # noqa: E731
    assert [issue().status_code for _ in range(3)] == [201, 201, 422]
