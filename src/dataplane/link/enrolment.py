"""A machine joins a data plane: keys are made here, their public halves are sent, and what comes back is pinned.

`join` may be repeated after any failure: keys that exist are used again, and the control plane answers the same node with
the same token the same. It writes `node.json` last, so a folder with that file is a node. The first node of a data plane
also makes the leaf's folder; later ones on the same machine find it. Used by `pointsman node join` and `pointsman up`;
the only part of the link that speaks HTTP, and never imported by the running agent.
"""

import asyncio
from pathlib import Path
from typing import Annotated, TypeVar

import httpx
import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from contracts import CONTRACT_LATEST, identity, v2
from contracts.keys import KeyPair, Role
from contracts.names import PublicKey, ResourceName, TenantId
from dataplane import config, policy
from dataplane.config import NodeConfig
from dataplane.files import write_secret
from dataplane.link import certificate, leaf, ledger, renewal
from dataplane.link.admission import Expected, Refused, admit
from dataplane.link.ledger import Ledger
from dataplane.link.store import DocumentStore
from dataplane.link.uplink import SequenceCounter, Uplink

NODE_SEED = "node.nk"
DOCUMENTS = "documents"
"""The folder of the node's DocumentStore, below the node's own."""
LINK = "link"
"""The folder of the node's link: its numbers, its facts, its ledger."""
JOIN_SECONDS_MAX = 15.0

Answer = TypeVar("Answer")


class JoinFailed(Exception):
    """The machine has not joined; trying again is safe. `code` is the API's, or `unreachable` or `bad_answer`."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class _Enrolled(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    account: PublicKey
    data_plane: ResourceName
    node: ResourceName
    root_key: PublicKey
    trust: Annotated[str, Meta(max_length=65_536)]
    hub_leaf_url: Annotated[str, Meta(pattern=r'^(nats|tls|ws|wss)://[^\s"\\]{1,300}$(?!\n)')]
    leaf_jwt: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,20000}$(?!\n)")] | None = None
    leaf_certificate: v2.CertificateText | None = None
    leaf_certificates: bool = False


class _Renewed(Struct, frozen=True, kw_only=True):
    certificate: v2.CertificateText
    trust: Annotated[str, Meta(max_length=65_536)]


class _Problem(Struct, frozen=True):
    code: str = "unknown"
    detail: str = ""
    hint: str = ""


def join(
    folder: Path,
    *,
    api: str,
    token: str,
    node: str,
    leaf_folder: Path | None = None,
    leaf_url: str | None = None,
    leaf_host: str = "127.0.0.1",
    leaf_port: int = 4222,
    secrets_folder: Path | None = None,
    contract_max: int = CONTRACT_LATEST,
    metrics_port: int | None = None,
    profile: str = "production",
) -> NodeConfig:
    """Join a data plane with a one-time token, and return the node's configuration, which is also in `folder`.

    `api` is the control plane's address. With a `leaf_folder` that holds no leaf yet, a leaf is enrolled and made there,
    to listen on `leaf_host`:`leaf_port`; with one that does, the node uses that leaf. `leaf_url` is where this node finds
    the leaf, if it is not on this machine: then `leaf_folder` holds copies of its `ctl.nk` and `data.nk`. Without a
    `leaf_folder` it lies in `folder`. `contract_max` of 1 pins the node to the older contract.
    `profile` names the policy that is written if the folder has none: `production` allows nothing yet, `local` this machine.

    Raises:
        JoinFailed: the control plane does not answer, refuses the token, or answers something that cannot be trusted, such
            as being another one than the token pins.
        OSError: a folder cannot be written.
    """
    folder, leaf_folder = folder.resolve(), (leaf_folder or folder / "leaf").resolve()
    secrets_folder = (secrets_folder or folder / "secrets").resolve()
    for each in (folder, leaf_folder, secrets_folder):
        each.mkdir(parents=True, exist_ok=True, mode=0o700)
    node_key = key_in(folder / NODE_SEED)
    makes_leaf = leaf_url is None and not (leaf_folder / leaf.CREDENTIALS).exists()
    leaf_key = key_in(leaf_folder / leaf.LEAF_SEED) if makes_leaf else None
    token, pin = identity.split_pin(token)
    asked = {"token": token, "node": node, "node_key": node_key.public, "leaf_key": None, "contract": contract_max}
    enrolled = _enrol(api, {**asked, **(_leaf_asks(leaf_folder, leaf_key) if leaf_key is not None else {})})
    if pin is not None and not identity.is_pinned(pin, enrolled.root_key):
        raise JoinFailed(
            "bad_answer",
            "the answer is of another control plane than the one that issued the token",
            "Check the address, and whether a proxy or the network answers in its place.",
        )
    trust = _keep_trust(folder, enrolled, contract_max)
    if leaf_key is not None:
        _make_leaf(leaf_folder, enrolled, trust, leaf_key, leaf_host, leaf_port)
    joined = NodeConfig(
        tenant=enrolled.tenant,
        account=enrolled.account,
        data_plane=enrolled.data_plane,
        node=enrolled.node,
        root_key=enrolled.root_key,
        seed_file=str(folder / NODE_SEED),
        leaf_url=leaf_url or f"nats://{leaf_host}:{leaf_port}",
        ctl_seed_file=str(leaf_folder / leaf.CTL_SEED),
        data_seed_file=str(leaf_folder / leaf.DATA_SEED),
        secrets_folder=str(secrets_folder),
        contract_max=contract_max,
        metrics_port=metrics_port,
    )
    if not (folder / policy.FILE_NAME).exists():
        write_secret(folder / policy.FILE_NAME, policy.PROFILES[profile])
    config.write(folder, joined)
    return joined


def renew(folder: Path, *, api: str) -> bool:
    """Bring the leaf of the node in `folder` a certificate by HTTP, and return whether the leaf has read it already.

    For a leaf that cannot link any more: its certificate has expired or is lost. The node must not be running, because it
    alone writes its ledger.

    Raises:
        JoinFailed: the control plane does not answer, refuses, or answers something that cannot be trusted.
        FileNotFoundError: nobody has joined from the folder, or its leaf is on another machine.
        OSError: a file cannot be written.
    """
    known = config.read(folder)
    leaf_folder = Path(known.ctl_seed_file).parent
    key_pair = KeyPair(Path(known.seed_file).read_text())
    link_folder = folder / LINK
    uplink = Uplink(known.node, key_pair, SequenceCounter(link_folder), Ledger(link_folder / ledger.FOLDER), contract=2)
    _, sealed = uplink.seal(renewal.request(leaf_folder))
    asked: dict[str, object] = {
        "tenant": known.tenant,
        "data_plane": known.data_plane,
        "node": known.node,
        "request": sealed.decode(),
    }
    renewed = _post(api, "/v1/enrol/certificate", asked, _Renewed)
    expected = Expected(
        tenant=known.tenant, data_plane=known.data_plane, root_key=known.root_key, contract=known.contract_max
    )
    try:
        document = admit(renewed.trust, expected).document
        authorities = document.authorities if isinstance(document, v2.TrustDocument) else UNSET
        if isinstance(authorities, UnsetType):
            raise JoinFailed("bad_answer", "the answer names no authority", "Check the address.")
        certificate.keep_authorities(leaf_folder, authorities)
        uri = identity.leaf_uri(known.tenant, known.data_plane, key_in(leaf_folder / leaf.LEAF_SEED).public)
        certificate.keep(leaf_folder, renewed.certificate, uri, authorities)
    except (Refused, certificate.BadCertificate) as error:
        raise JoinFailed("bad_answer", f"the leaf's certificate: {error}", "Check the address.") from error
    try:
        asyncio.run(renewal.reload(known, leaf_folder))
    except renewal.FAILURES:
        return False
    return True


def _leaf_asks(folder: Path, leaf_key: KeyPair) -> dict[str, object]:
    tls_key = certificate.key_of(folder / certificate.TLS_KEY)
    proof = identity.prove(leaf_key, tls_key)
    return {"leaf_key": leaf_key.public, "leaf_tls_key": tls_key, "leaf_tls_proof": proof}


def _enrol(api: str, request: dict[str, object]) -> _Enrolled:
    return _post(api, "/v1/enrol", request, _Enrolled)


def _post(api: str, path: str, request: dict[str, object], answer: type[Answer]) -> Answer:
    try:
        response = httpx.post(f"{api.rstrip('/')}{path}", json=request, timeout=JOIN_SECONDS_MAX)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise JoinFailed("unreachable", f"{api} does not answer", "Check the address, then join again.") from error
    if response.status_code >= 300:
        try:
            problem = msgspec.json.decode(response.content, type=_Problem)
        except (msgspec.DecodeError, UnicodeDecodeError):
            problem = _Problem()
        raise JoinFailed(problem.code, problem.detail or f"HTTP {response.status_code}", problem.hint)
    try:
        return msgspec.json.decode(response.content, type=answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JoinFailed("bad_answer", "the answer is not that of a control plane", "Check the address.") from error


def _keep_trust(folder: Path, enrolled: _Enrolled, contract: int) -> v2.TrustDocument:
    """Store the first list of trusted keys: with it the node accepts documents from the leaf, even without a hub."""
    expected = Expected(
        tenant=enrolled.tenant, data_plane=enrolled.data_plane, root_key=enrolled.root_key, contract=contract
    )
    try:
        accepted = admit(enrolled.trust, expected)
        if not isinstance(accepted.document, v2.TrustDocument):
            raise JoinFailed("bad_answer", "the answer holds no list of trusted keys", "Check the address.")
        DocumentStore(folder / DOCUMENTS).put(accepted)
        return accepted.document
    except Refused as refused:
        raise JoinFailed("bad_answer", f"the list of trusted keys: {refused}", "Join with a new token.") from refused


def _make_leaf(folder: Path, enrolled: _Enrolled, trust: v2.TrustDocument, key: KeyPair, host: str, port: int) -> None:
    if enrolled.leaf_jwt is None:
        raise JoinFailed("bad_answer", "the answer holds no credentials for the leaf", "Join with a new token.")
    # A hub that demands none may show a certificate of anybody's, and ours is renewed into being later.
    if enrolled.leaf_certificates:
        authorities = [] if isinstance(trust.authorities, UnsetType) else trust.authorities
        if enrolled.leaf_certificate is None or not authorities:
            raise JoinFailed("bad_answer", "the answer holds no certificate for the leaf", "Join with a new token.")
        certificate.keep_authorities(folder, authorities)
        uri = identity.leaf_uri(enrolled.tenant, enrolled.data_plane, key.public)
        try:
            certificate.keep(folder, enrolled.leaf_certificate, uri, authorities)
        except certificate.BadCertificate as error:
            raise JoinFailed("bad_answer", f"the leaf's certificate: {error}", "Join with a new token.") from error
    text = leaf.render(
        folder=folder,
        data_plane=enrolled.data_plane,
        ctl_key=key_in(folder / leaf.CTL_SEED).public,
        data_key=key_in(folder / leaf.DATA_SEED).public,
        reload_key=key_in(folder / leaf.RELOAD_SEED).public,
        hub_url=enrolled.hub_leaf_url,
        host=host,
        port=port,
        tls=leaf.own_tls(folder, enrolled.hub_leaf_url),
    )
    write_secret(folder / leaf.CONFIGURATION, text)
    # Last, because its presence says that the leaf is made.
    write_secret(folder / leaf.CREDENTIALS, leaf.credentials(enrolled.leaf_jwt, key.seed))


def key_in(path: Path) -> KeyPair:
    """Return the key in `path`, making it if there is none: only its owner can read it, and it never leaves."""
    if not path.exists():
        write_secret(path, KeyPair.generate(Role.USER).seed + "\n")
    return KeyPair(path.read_text())
