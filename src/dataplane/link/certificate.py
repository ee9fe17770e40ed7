"""The leaf's TLS key and certificate, and the authorities by which it knows the hub: three files in the leaf's folder.

- `leaf.key` is the key for which a certificate is asked for. It is made here and never leaves; the control plane gets its
  public half, signed by the leaf's nkey.
- `leaf.pem` is what the leaf shows: the certificate, short-lived, and its key, in one file, so that no moment and no crash
  leaves a certificate beside the key of another.
- `ca.pem` are the certificates of its authorities, as the trust list that the root key signed names them.

nats-server reads them at its start and when it is told to read them again; it does not start with a file that its
configuration names and that is not there or not whole. Called by `join` and by the renewal.
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from contracts import identity
from dataplane.files import write_secret

TLS_KEY, CERTIFICATE, AUTHORITIES = "leaf.key", "leaf.pem", "ca.pem"


class BadCertificate(ValueError):
    """What came is not a certificate for the key that it was asked for."""


def make_key(path: Path) -> str:
    """Make a new TLS key in `path`, and return its public half as it crosses.

    Raises:
        OSError: it cannot be written.
    """
    made = ec.generate_private_key(ec.SECP256R1())
    text = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_secret(path, text.decode())
    return _crossing(made.public_key())


def key_of(path: Path) -> str:
    """Return the public half of the TLS key in `path`, as it crosses, making the key if there is none.

    Raises:
        ValueError: the file holds no such key.
        OSError: it can be neither read nor written.
    """
    if not path.exists():
        return make_key(path)
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} holds no TLS key")
    return _crossing(key.public_key())


def keep(folder: Path, certificate: str, uri: str, authorities: Sequence[str]) -> None:
    """Write a leaf's certificate beside its key, if it is for the key in `leaf.key`, for `uri`, and by an authority.

    Raises:
        BadCertificate: it is not.
        OSError: a file can be neither read nor written.
    """
    tls_key = key_of(folder / TLS_KEY)
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
        known = [x509.load_pem_x509_certificate(each.encode()) for each in authorities]
        names = list(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise BadCertificate("not a certificate") from error
    key = found.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or _crossing(key) != tls_key:
        raise BadCertificate("a certificate for another key")
    if names != [x509.UniformResourceIdentifier(uri)]:
        raise BadCertificate("a certificate with another name")
    if not any(_is_by(found, each) for each in known):
        raise BadCertificate("a certificate of an authority that is not trusted")
    write_secret(folder / CERTIFICATE, certificate + (folder / TLS_KEY).read_text())


def _is_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def keep_authorities(folder: Path, authorities: Sequence[str]) -> bool:
    """Write the authorities' certificates if they are others than before. Return whether they are."""
    text = "".join(authorities)
    path = folder / AUTHORITIES
    if path.exists() and path.read_text() == text:
        return False
    write_secret(path, text)
    return True


def is_whole(folder: Path) -> bool:
    """Say whether nats-server can start with the leaf's files: certificate and key are there and fit, and so are the authorities."""
    try:
        text = (folder / CERTIFICATE).read_bytes()
        key = serialization.load_pem_private_key(text[text.index(b"-----BEGIN PRIVATE KEY") :], password=None)
        found = x509.load_pem_x509_certificate(text)
        x509.load_pem_x509_certificates((folder / AUTHORITIES).read_bytes())
    except (OSError, ValueError, TypeError):
        return False
    return found.public_key() == key.public_key()


def lifetime(folder: Path) -> tuple[dt.datetime, dt.datetime] | None:
    """Return from when until when the leaf's certificate holds; None if there is none that can be read."""
    try:
        found = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    except (OSError, ValueError):
        return None
    return found.not_valid_before_utc, found.not_valid_after_utc


def is_by(folder: Path, authority: str) -> bool:
    """Say whether the leaf's certificate was signed by `authority`, a certificate in PEM.

    Raises:
        OSError, ValueError: one of them cannot be read.
    """
    found = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    return _is_by(found, x509.load_pem_x509_certificate(authority.encode()))


def written_at(folder: Path) -> dt.datetime:
    """Return when the leaf's certificate was written, or now if that seems to lie ahead.

    Raises:
        OSError: there is none.
    """
    now = dt.datetime.now(dt.UTC)
    return min(now, dt.datetime.fromtimestamp((folder / CERTIFICATE).stat().st_mtime, dt.UTC))


def _crossing(key: ec.EllipticCurvePublicKey) -> str:
    return identity.write_tls_key(
        key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    )
