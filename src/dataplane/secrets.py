"""Secrets, resolved on the node only: a reference goes in, a `Secret` that never shows its value comes out.

Documents carry references such as `file:shop_password` or `env:SHOP_PASSWORD`; the process that connects resolves them
right before it does, so a rotated secret is taken up by the next session and no secret lies in an assignment, an
argument list or a log. Called by workers and by the node's connection check.

A `file:` reference is a path below the node's secrets folder. It is opened segment by segment and never through a
symbolic link, so that no reference, whoever wrote it, reads a file that the customer did not put into that folder. The
folder itself is the customer's choice and may be a link. Refused are also: what is not a regular file, what anyone on
the machine may write, and what belongs to neither us, root, nor the owner of the folder.
"""

import errno
import hmac
import os
import stat
from pathlib import Path
from typing import NoReturn

from contracts.codes import Code
from contracts.names import SECRET_REFERENCE_PATTERN, matches
from dataplane.failures import Permanent, RetryLater

SECRET_BYTES_MAX = 64 << 10
ENVIRONMENT_SCHEME = "env:"
FILE_SCHEME = "file:"

# O_NONBLOCK: opening a named pipe that somebody put there must not hang the worker.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OPEN_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY


class Secret:
    """A value that is shown by `reveal` alone: not by repr, str, format, vars, pickle or copy."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value. Call it where it is used, and keep the result in no variable that outlives the call."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, specification: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is neither pickled nor copied")


def resolve(reference: str, folder: Path | str) -> Secret:
    """Return the secret that `reference` names; `folder` is the node's secrets folder. One trailing newline is cut.

    Raises:
        RetryLater: SECRET_MISSING: the file or variable does not exist, or is empty (it may be about to be written).
        Permanent: SECRET_REFUSED: the reference, or what it leads to, is nothing that a secret may be read from.
    """
    if not matches(SECRET_REFERENCE_PATTERN, reference):
        # Not quoted: what was written in place of a reference may be the secret itself.
        raise Permanent(Code.SECRET_REFUSED, "a secret reference has not the form env:NAME or file:RELATIVE/PATH")
    if reference.startswith(ENVIRONMENT_SCHEME):
        value = os.environ.get(reference.removeprefix(ENVIRONMENT_SCHEME), "")
    else:
        value = _decode(_read_below(Path(folder), reference.removeprefix(FILE_SCHEME).split("/")), reference)
    if not value:
        raise RetryLater(Code.SECRET_MISSING, f"{reference} is not set, or empty")
    if len(value) > SECRET_BYTES_MAX or "\0" in value:
        raise Permanent(Code.SECRET_REFUSED, f"{reference} is longer than {SECRET_BYTES_MAX} bytes or holds a NUL")
    return Secret(value)


def _decode(content: bytes, reference: str) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        # Without its cause: that one quotes the content.
        raise Permanent(Code.SECRET_REFUSED, f"{reference} is not UTF-8 text") from None
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")


def _read_below(folder: Path, segments: list[str]) -> bytes:
    """Read the file whose path below `folder` is `segments`, through no symbolic link, at most one byte too much."""
    name = "/".join(segments)
    opened: list[int] = []
    try:
        opened.append(os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY))
        owner = os.fstat(opened[-1]).st_uid
        for segment in segments[:-1]:
            opened.append(os.open(segment, _OPEN_FOLDER, dir_fd=opened[-1]))
            _check(opened[-1], owner, name)
        opened.append(os.open(segments[-1], _OPEN_FILE, dir_fd=opened[-1]))
        _check(opened[-1], owner, name)
        if not stat.S_ISREG(os.fstat(opened[-1]).st_mode):
            raise Permanent(Code.SECRET_REFUSED, f"{FILE_SCHEME}{name} is not a regular file")
        with os.fdopen(opened.pop(), "rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise _explain(error, name, folder) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
    if len(content) > SECRET_BYTES_MAX:
        raise Permanent(Code.SECRET_REFUSED, f"{FILE_SCHEME}{name} is longer than {SECRET_BYTES_MAX} bytes")
    return content


def _check(descriptor: int, owner: int, name: str) -> None:
    status = os.fstat(descriptor)
    if status.st_mode & stat.S_IWOTH:
        raise Permanent(Code.SECRET_REFUSED, f"{FILE_SCHEME}{name} can be changed by anyone; run `chmod o-w` on it")
    if status.st_uid not in (0, os.geteuid(), owner):
        raise Permanent(Code.SECRET_REFUSED, f"{FILE_SCHEME}{name} belongs to another user (uid {status.st_uid})")


def _explain(error: OSError, name: str, folder: Path) -> Permanent | RetryLater:
    if error.errno == errno.ENOENT:
        return RetryLater(Code.SECRET_MISSING, f"{FILE_SCHEME}{name} does not exist below {folder}")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EMLINK):
        return Permanent(Code.SECRET_REFUSED, f"{FILE_SCHEME}{name} is a symbolic link, or leads through one")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Permanent(Code.SECRET_REFUSED, f"{FILE_SCHEME}{name} may not be read by this user")
    return RetryLater(Code.SECRET_MISSING, f"{FILE_SCHEME}{name} could not be read: {os.strerror(error.errno or 0)}")
