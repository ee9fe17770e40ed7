"""Ed25519 keys in NATS's own form (nkeys): made, read and checked in one place.

One form serves accounts, users, nodes and the keys that sign documents, so a key in a log or a file says by its first
letter what it is: O operator, A account, U user or node. A seed starts with S and is a secret.
"""

import base64
import binascii
import os
from enum import Enum
from typing import NoReturn

import nacl.exceptions
import nacl.signing
import nkeys

PUBLIC_BYTES = 35
"""A public half: one byte of role, 32 of key, 2 of checksum."""
SEED_BYTES = 36
"""A seed: two bytes of role, 32 of secret, 2 of checksum."""


class Role(Enum):
    """What a key is for: the first letter of its public half."""

    OPERATOR = nkeys.PREFIX_BYTE_OPERATOR
    ACCOUNT = nkeys.PREFIX_BYTE_ACCOUNT
    USER = nkeys.PREFIX_BYTE_USER


class KeyPair:
    """A secret key. It prints as its public half only."""

    __slots__ = ("_pair", "public")

    def __init__(self, seed: str | bytes) -> None:
        """Read a key from its seed.

        Raises:
            ValueError: `seed` is not an nkey seed. The text does not quote it.
        """
        raw = seed.encode() if isinstance(seed, str) else seed
        try:
            if not _has_checksum(raw.strip(), length=SEED_BYTES):
                raise ValueError("wrong length or checksum")
            self._pair = nkeys.from_seed(bytearray(raw.strip()))
            self.public: str = self._pair.public_key.decode()
        except (nkeys.NkeysError, binascii.Error, ValueError, IndexError) as error:
            raise ValueError("not an nkey seed") from error.__class__("hidden")

    @classmethod
    def generate(cls, role: Role) -> "KeyPair":
        """Make a new key from the system's randomness."""
        return cls.derive(role, os.urandom(32))

    @classmethod
    def derive(cls, role: Role, secret: bytes) -> "KeyPair":
        """Make the key that belongs to 32 secret bytes."""
        return cls(bytes(nkeys.encode_seed(secret, role.value)))

    @property
    def seed(self) -> str:
        """The secret half, for writing it to a file that only its owner reads."""
        return bytes(self._pair.seed).decode()

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the signature of `message`."""
        signature: bytes = self._pair.sign(message)
        return signature

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is not serialized")


def verify(public: str, message: bytes, signature: bytes) -> bool:
    """Say whether `signature` is that of `message` by the key whose public half is `public`."""
    try:
        if not _has_checksum(public.encode(), length=PUBLIC_BYTES):
            return False
        nacl.signing.VerifyKey(base64.b32decode(public)[1:33]).verify(message, signature)
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.CryptoError, binascii.Error, ValueError, TypeError):
        return False
    return True


def _has_checksum(encoded: bytes, *, length: int) -> bool:
    # Checked here, because the library takes a seed with a typing error for another key.
    padded = encoded + b"=" * (-len(encoded) % 8)
    raw = bytearray(base64.b32decode(padded))
    return len(raw) == length and bytes(nkeys.crc16_checksum(raw[:-2])) == bytes(raw[-2:])
