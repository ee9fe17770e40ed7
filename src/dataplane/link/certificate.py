"""The leaf's TLS key and certificate, and the authorities by which it knows the hub: three files in the leaf's folder.

- `leaf.key` is made here and never leaves; the control plane gets its public half, signed by the leaf's nkey.
- `leaf.pem` is the certificate that it gives for it, short-lived.
- `ca.pem` are the certificates of its authorities, as the trust list that the root key signed names them.

nats-server reads them at its start and when it is told to read them again; it does not start without a file that its
configuration names. Called by `join`.
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from contracts import identity
from dataplane.files import write_secret

TLS_KEY, CERTIFICATE, AUTHORITIES = "leaf.key", "leaf.pem", "ca.pem"


class BadCertificate(ValueError):
    """What came is not a certificate for the key that it was asked for."""


def key_of(path: Path) -> str:
    """Return the public half of the TLS key in `path`, as it crosses, making the key if there is none.

    Raises:
        ValueError: the file holds no such key.
        OSError: it can be neither read nor written.
    """
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        text = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_secret(path, text.decode())
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} holds no TLS key")
    return _crossing(key.public_key())


def keep(folder: Path, certificate: str, tls_key: str, uri: str) -> None:
    """Write a leaf's certificate, if it is for `tls_key` and for `uri`.

    Raises:
        BadCertificate: it is not.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
        names = list(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise BadCertificate("not a certificate") from error
    key = found.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or _crossing(key) != tls_key:
        raise BadCertificate("a certificate for another key")
    if names != [x509.UniformResourceIdentifier(uri)]:
        raise BadCertificate("a certificate with another name")
    write_secret(folder / CERTIFICATE, certificate)


def keep_authorities(folder: Path, authorities: Sequence[str]) -> bool:
    """Write the authorities' certificates if they are others than before. Return whether they are."""
    text = "".join(authorities)
    path = folder / AUTHORITIES
    if path.exists() and path.read_text() == text:
        return False
    write_secret(path, text)
    return True


def lifetime(folder: Path) -> tuple[dt.datetime, dt.datetime] | None:
    """Return from when until when the leaf's certificate holds; None if there is none that can be read."""
    try:
        found = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    except (OSError, ValueError):
        return None
    return found.not_valid_before_utc, found.not_valid_after_utc


def _crossing(key: ec.EllipticCurvePublicKey) -> str:
    return identity.write_tls_key(
        key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    )
