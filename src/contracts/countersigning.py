"""The customer's own signature under what people write of a pipeline or a connection, checkable from the document alone.

The control plane's signature says that a document is the control plane's. This one says that the customer wrote what is in
it, so that a control plane gone bad cannot invent a pipeline, change one, or bring back an older one. `pointsman apply --sign`
makes it on the customer's machine, the control plane passes it on as it is, and a node whose policy asks for it checks it.

What is signed is one JSON array, its keys sorted and without spaces: a label, the kind, the tenant, the data plane (empty for
a connection, which several may use), the name, a number that only grows, and what was written, without the fields that have
their default. So a field that a later version adds changes no signature, and neither does the contract version that a
document travels in. Counters and whether it runs are not signed: docs/policy.md says why. Pure.
"""

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec
from msgspec import NODEFAULT, UNSET, Struct, structs

from contracts import keys
from contracts.keys import KeyPair
from contracts.v2 import (
    BufferSettings,
    ConnectionDocument,
    CustomerSignature,
    PipelineDocument,
    PipelineSink,
    PipelineSource,
    SystemConfig,
    Transform,
)

LABEL = "pointsman.customer.1"
"""Tells this signature from every other use of the same key."""


class Statement(Struct, frozen=True, kw_only=True):
    """What a customer signs, but for the number: one resource, whole, and where it belongs."""

    kind: str
    tenant: str
    name: str
    data_plane: str
    spec: dict[str, Any]

    def text(self, number: int) -> bytes:
        """Return the bytes that are signed under `number`."""
        return msgspec.json.encode(
            [LABEL, self.kind, self.tenant, self.data_plane, self.name, number, self.spec], order="deterministic"
        )

    def sign(self, key_pair: KeyPair, number: int) -> CustomerSignature:
        """Return the signature of the holder of `key_pair`. `number` must be above every earlier one of the resource."""
        signature = urlsafe_b64encode(key_pair.sign(self.text(number))).rstrip(b"=").decode()
        return CustomerSignature(key=key_pair.public, number=number, signature=signature)

    def is_signed_by(self, signature: CustomerSignature) -> bool:
        """Say whether `signature` is that of its key under exactly this. Whether the key counts is the caller's to say."""
        raw = urlsafe_b64decode(signature.signature + "==")
        return keys.verify(signature.key, self.text(signature.number), raw)


def of_pipeline(
    *,
    tenant: str,
    name: str,
    data_plane: str,
    source: PipelineSource,
    sink: PipelineSink,
    buffer: BufferSettings,
    transforms: list[Transform],
) -> Statement:
    """Return what is signed of a pipeline."""
    written = {
        "source": source,
        "sink": structs.replace(sink, resumes=0),
        "buffer": buffer,
        "transforms": transforms,
    }
    return Statement(kind="Pipeline", tenant=tenant, name=name, data_plane=data_plane, spec=canonical(written))


def of_connection(*, tenant: str, name: str, config: SystemConfig, secrets: Mapping[str, str]) -> Statement:
    """Return what is signed of a connection."""
    written = {"config": config, "secrets": dict(secrets)}
    return Statement(kind="Connection", tenant=tenant, name=name, data_plane="", spec=canonical(written))


def of_document(document: PipelineDocument | ConnectionDocument) -> Statement:
    """Return what must have been signed for `document`, made of nothing but its own fields."""
    if isinstance(document, ConnectionDocument):
        return of_connection(
            tenant=document.tenant, name=document.name, config=document.config, secrets=document.secrets
        )
    return of_pipeline(
        tenant=document.tenant,
        name=document.name,
        data_plane=document.data_plane,
        source=document.source,
        sink=document.sink,
        buffer=document.buffer,
        transforms=document.transforms,
    )


def canonical(value: Any) -> Any:
    """Return `value` as plain JSON values, without the fields of messages that have their default."""
    if isinstance(value, Struct):
        config = value.__struct_config__
        fields: dict[str, Any] = {config.tag_field: config.tag} if config.tag_field is not None else {}
        for field in structs.fields(type(value)):
            held = getattr(value, field.name)
            if held is not UNSET and (field.required or held != _default(field)):
                fields[field.encode_name] = canonical(held)
        return fields
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): canonical(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(each) for each in value]
    return value


def number_now() -> int:
    """Return a number for a signature of this moment: milliseconds since 1970, so that later ones are higher."""
    return time.time_ns() // 1_000_000


def _default(field: structs.FieldInfo) -> Any:
    return field.default if field.default is not NODEFAULT else field.default_factory()
