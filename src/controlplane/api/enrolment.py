"""/v1/enrol: how a node joins. It has no API key yet; the token in the body says whose it is, and is used once."""

from typing import Annotated

import msgspec
from litestar import Controller, post
from msgspec import Meta

from contracts import CONTRACTS_SPOKEN, identity, v2
from contracts.names import PublicKey, ResourceName, Signature, TenantId, TlsKey
from contracts.subjects import UpAddress
from controlplane import manifests
from controlplane.access.roles import Principal, Role
from controlplane.access.secrets import JoinTokenText, read_join_token
from controlplane.api.answers import Answer, answer, carry_out
from controlplane.api.authentication import address_of
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, Parameters, services_of
from controlplane.api.schemas import Enrolment, LeafCertificate
from controlplane.api.services import Services
from controlplane.commands import WriteOptions, nodes
from controlplane.manifests import Strict
from controlplane.refusals import Refused, refused_at

_RENEWED: msgspec.json.Decoder[v2.CertificateReply | v2.Receipt] = msgspec.json.Decoder(
    v2.CertificateReply | v2.Receipt
)


class EnrolmentRequest(Strict, frozen=True, kw_only=True):
    """What a node says of itself when it joins. Its keys were made on the node; only their public halves come here."""

    token: Annotated[str, Meta(max_length=512)]
    node: ResourceName
    node_key: PublicKey
    leaf_key: PublicKey | None = None
    """Given by the first node of a data plane, which also sets up the leaf."""
    leaf_tls_key: TlsKey | None = None
    """The public half of the leaf's TLS key, for which it gets a certificate."""
    leaf_tls_proof: Signature | None = None
    """The leaf's signature, by `leaf_key`, that the TLS key is its own."""
    contract: Annotated[int, Meta(ge=1, le=99)]
    """The highest contract version that the node speaks."""


class CertificateRenewal(Strict, frozen=True, kw_only=True):
    """What a node sends when its leaf cannot link, because the leaf's certificate has expired or is lost."""

    tenant: TenantId
    data_plane: ResourceName
    node: ResourceName
    request: Annotated[str, Meta(max_length=8_192)]
    """The signed message that asks for a certificate over the channel, as it is: the node's key proves who asks."""


class EnrolmentController(Controller):
    """Enrolment."""

    path = "/v1/enrol"

    @post(
        "/",
        status_code=200,
        **declared(
            Operation(
                id="EnrolNode",
                summary="Join a data plane with a token",
                description="The same node may repeat the request with the same keys and gets the same answer.",
                body=EnrolmentRequest,
                answers={200: Enrolment},
                refusals=(
                    "invalid_token",
                    "token_used",
                    "name_taken",
                    "contract_not_spoken",
                    "invalid_document",
                    "too_many_requests",
                ),
            )
        ),
    )
    async def enrol_node(self, request: Ask) -> Answer:
        """Enrol a node."""
        services = services_of(request)
        address = address_of(request)
        services.failures.check(address)
        Parameters(request)
        asked = manifests.convert(manifests.parse_object(await request.body()), EnrolmentRequest)
        if not any(contract <= asked.contract for contract in CONTRACTS_SPOKEN):
            raise Refused("contract_not_spoken", f"Spoken are {CONTRACTS_SPOKEN}.")
        _check_keys(asked, certificates_required=services.certificates_required)
        token, pin = read_join_token(asked.token), identity.split_pin(asked.token)[1]
        if token is None or (pin is not None and not identity.is_pinned(pin, services.accounts.root_key)):
            services.failures.failed(address)
            raise Refused("invalid_token", "This is not a join token.")
        principal = Principal(token.tenant, Role.OPERATOR, f"node:{asked.node}")
        certificate = _certificate(services, token, asked)
        decide = nodes.enrol(
            token, node=asked.node, key=asked.node_key, leaf_key=asked.leaf_key, contract=asked.contract
        )
        try:
            await carry_out(request, principal, decide, WriteOptions())
        except Refused as refusal:
            if refusal.code == "invalid_token":
                services.failures.failed(address)
            raise
        accounts = services.accounts
        leaf_jwt = accounts.leaf_credentials(token.tenant, token.data_plane, asked.leaf_key) if asked.leaf_key else None
        return answer(
            Enrolment(
                tenant=token.tenant,
                account=accounts.account_key(token.tenant),
                data_plane=token.data_plane,
                node=asked.node,
                root_key=accounts.root_key,
                trust=accounts.trust_document(token.tenant, token.data_plane),
                hub_leaf_url=services.hub_leaf_url,
                leaf_jwt=leaf_jwt,
                leaf_certificate=certificate,
                leaf_certificates=services.certificates_required,
            )
        )

    @post(
        "/certificate",
        status_code=200,
        **declared(
            Operation(
                id="RenewLeafCertificate",
                summary="Give a leaf its next certificate",
                description="For a leaf that cannot link; one that can is renewed over its link. The request is signed by"
                " the node's key, and names a TLS key that the leaf's key has signed.",
                body=CertificateRenewal,
                answers={200: LeafCertificate},
                refusals=("certificate_refused", "invalid_document", "too_many_requests"),
            )
        ),
    )
    async def renew_certificate(self, request: Ask) -> Answer:
        """Renew a leaf's certificate."""
        services = services_of(request)
        address = address_of(request)
        services.failures.check(address)
        Parameters(request)
        asked = manifests.convert(manifests.parse_object(await request.body()), CertificateRenewal)
        account = services.accounts.account_key(asked.tenant)
        sender = UpAddress(account, v2.CONTRACT, asked.data_plane, asked.node, "certificate")
        answered = await services.run(services.renew, sender, asked.request.encode())
        reply = _RENEWED.decode(answered)
        if isinstance(reply, v2.Receipt):
            services.failures.failed(address)
            raise Refused("certificate_refused", f"The request was refused: {reply.code}.")
        trust = services.accounts.trust_document(asked.tenant, asked.data_plane)
        return answer(LeafCertificate(certificate=reply.certificate, trust=trust))


def _certificate(services: Services, token: JoinTokenText, asked: EnrolmentRequest) -> str | None:
    if asked.leaf_key is None or asked.leaf_tls_key is None or asked.leaf_tls_proof is None:
        return None
    try:
        return services.certificates.for_leaf(
            token.tenant, token.data_plane, asked.leaf_key, asked.leaf_tls_key, asked.leaf_tls_proof
        )
    except ValueError:
        raise refused_at("invalid_document", "/leaf_tls_key", "is no P-256 point") from None


def _check_keys(asked: EnrolmentRequest, *, certificates_required: bool) -> None:
    """Refuse keys that are not what they say, before the token is used up.

    An account's key in the place of a user's would be given rights that nobody meant. A TLS key that the leaf has not signed
    for would get somebody else a certificate in its name.
    """
    for pointer, key in (("/node_key", asked.node_key), ("/leaf_key", asked.leaf_key)):
        if key is not None and not key.startswith("U"):
            raise refused_at("invalid_document", pointer, "is not the public half of a user's nkey")
    if asked.leaf_key is None:
        return
    if asked.leaf_tls_key is None or asked.leaf_tls_proof is None:
        if certificates_required:
            raise refused_at("invalid_document", "/leaf_tls_key", "is required: leaves link with certificates here")
    elif not identity.is_proven(asked.leaf_key, asked.leaf_tls_key, asked.leaf_tls_proof):
        raise refused_at("invalid_document", "/leaf_tls_proof", "is not the signature of the leaf's key")
