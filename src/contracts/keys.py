"""Ed25519 keys in NATS's own form (nkeys): made, read and checked in one place.

One form serves accounts, users, nodes and the keys that sign documents, so a key in a log or a file says by its first
letter what it is: O operator, A account, U user or node. A seed starts with S and is a secret.
"""

import base64
import binascii
import os
from enum import Enum

import nacl.exceptions
import nacl.signing
import nkeys


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


def verify(public: str, message: bytes, signature: bytes) -> bool:
    """Say whether `signature` is that of `message` by the key whose public half is `public`."""
    try:
        raw = base64.b32decode(public)
        if len(raw) != 35 or nkeys.crc16_checksum(bytearray(raw[:33])) != raw[33:]:
            return False
        nacl.signing.VerifyKey(raw[1:33]).verify(message, signature)
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.CryptoError, binascii.Error, ValueError, TypeError):
        return False
    return True
