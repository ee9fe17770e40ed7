"""The control plane's certificate authority: it makes itself, signs leaves' certificates and the hub's, and says who shows one.

Authorities are numbered files in the keys folder, `ca-1.pem` with `ca-1.key` and so on, and all that are there are
trusted. The newest signs leaves, the oldest signs the hub: so after a rotation the hub trusts leaves of both, leaves go on
knowing the hub by the one that they have had all along, and nobody has to change in step. `keys` makes and removes them.

Leaves' certificates are short-lived and hold one name, `contracts.identity.leaf_uri`. Nothing here is sent or kept.
"""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contracts import identity

AUTHORITIES_MAX = 4
AUTHORITY_DAYS = 3_650
HUB_DAYS = 398
LEAF_HOURS_DEFAULT = 7 * 24
CLOCK_SKEW = dt.timedelta(minutes=10)
"""How far another machine's clock may be behind before it takes a fresh certificate for one of the future."""

_CURVE = ec.SECP256R1()


class Authority:
    """One authority: its certificate and the key that signs."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @property
    def pem(self) -> str:
        """The authority's own certificate."""
        return _pem(self.certificate)

    @classmethod
    def make(cls, now: dt.datetime) -> "Authority":
        """Make a new authority."""
        key = ec.generate_private_key(_CURVE)
        serial = x509.random_serial_number()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Pointsman"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"Pointsman authority {serial:x}"[:64]),
            ]
        )
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + dt.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> "Authority":
        """Read an authority's two files.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file does not hold what it should. The text quotes nothing.
        """
        try:
            loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
            found = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{certificate} and {key.name} are no authority") from error
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or found.public_key() != loaded.public_key():
            raise ValueError(f"{key} is not the key of {certificate.name}")
        return cls(found, loaded)

    def key_pem(self) -> str:
        """Return the secret key, for a file that only its owner reads."""
        return _key_pem(self._key)

    def issue_leaf(self, uri: str, tls_key: str, *, now: dt.datetime, lifetime: dt.timedelta) -> str:
        """Return a client certificate in PEM that says that the holder of `tls_key` is `uri`.

        Raises:
            ValueError: `tls_key` is no point of the curve.
        """
        public = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, identity.read_tls_key(tls_key))
        name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        # Without a subject the name of the extension is all there is, so it is critical (RFC 5280, 4.2.1.6).
        return _pem(self._sign(public, name, usage, critical_name=True, now=now, lifetime=lifetime))

    def issue_hub(self, names: Sequence[str], *, now: dt.datetime) -> tuple[str, str]:
        """Return a server certificate for the hub's `names`, DNS names or addresses, and its key, both in PEM."""
        key = ec.generate_private_key(_CURVE)
        name = x509.SubjectAlternativeName([_general_name(each) for each in names])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        lifetime = dt.timedelta(days=HUB_DAYS)
        certificate = self._sign(key.public_key(), name, usage, critical_name=True, now=now, lifetime=lifetime)
        return _pem(certificate), _key_pem(key)

    def has_signed(self, certificate: x509.Certificate) -> bool:
        """Say whether this authority issued `certificate`."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        name: x509.SubjectAlternativeName,
        usage: x509.ExtendedKeyUsage,
        *,
        critical_name: bool,
        now: dt.datetime,
        lifetime: dt.timedelta,
    ) -> x509.Certificate:
        ours = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(name, critical=critical_name)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ours),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )


class Shown:
    """A certificate that a leaf has shown, already verified by the hub. Reads its name and until when it holds."""

    def __init__(self, pem: str) -> None:
        """Read the certificate.

        Raises:
            ValueError: it is none.
        """
        self._certificate = x509.load_pem_x509_certificate(pem.encode())

    @property
    def not_after(self) -> dt.datetime:
        """When it expires."""
        return self._certificate.not_valid_after_utc

    def is_for(self, uri: str, authorities: Sequence[Authority], now: dt.datetime) -> bool:
        """Say whether it names `uri` and nothing else, is valid, and was signed by one of `authorities`."""
        certificate = self._certificate
        if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
            return False
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, ValueError):
            return False
        if list(names) != [x509.UniformResourceIdentifier(uri)]:
            return False
        return any(authority.has_signed(certificate) for authority in authorities)


def holds_for(certificate: Path, names: Sequence[str], authority: Authority, now: dt.datetime) -> bool:
    """Say whether the hub's certificate is there, is for `names`, by this authority, and has half of its life before it."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    half = found.not_valid_before_utc + (found.not_valid_after_utc - found.not_valid_before_utc) / 2
    return list(held) == [_general_name(each) for each in names] and authority.has_signed(found) and now < half


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
