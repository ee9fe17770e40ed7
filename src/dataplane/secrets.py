"""Secrets, resolved on the node only: a reference goes in, a `Secret` that never shows its value comes out.

Documents carry references such as `file:shop_password` or `env:SHOP_PASSWORD`; the process that connects resolves them
right before it does, so a rotated secret is taken up by the next session and no secret lies in an assignment, an
argument list or a log. Called by workers and by the node's connection check.

`env:` is a variable of this process, `file:` and `k8s:` are files, and `vault:` and `aws-sm:` lie in stores of the
customer's (`secret_stores`). Nothing is kept: every session asks again.

A `file:` reference is a path below the node's secrets folder. It is opened segment by segment and never through a
symbolic link, so that no reference, whoever wrote it, reads a file that the customer did not put into that folder. The
folder itself is the customer's choice and may be a link. Refused are also: what is not a regular file, what anyone on
the machine may write, and what belongs to neither us, root, nor the owner of the folder.

A `k8s:` reference is a file of a secret that Kubernetes mounted below that folder. There a file is a link to `..data/FILE`,
and `..data` is a link to a folder that is exchanged as a whole when the secret changes. Exactly these two links are followed, to
exactly these places; the files behind them are opened as all others.
"""

import errno
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from contracts.codes import Code
from contracts.names import SECRET_FORMS, SECRET_REFERENCE_PATTERN, matches
from dataplane import secret_stores
from dataplane.failures import Permanent, RetryLater

SECRET_BYTES_MAX = 64 << 10
KUBERNETES_DATA = "..data"
KUBERNETES_VERSION_PATTERN = r"^\.\.[0-9][A-Za-z0-9_.-]{0,126}$(?!\n)"
"""What `..data` leads to: a folder beside it, named by the moment at which the secret was written."""

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


def password(references: Mapping[str, str], folder: Path | str) -> Secret | None:
    """Return the password among a connection's references; None when it has none.

    Raises:
        RetryLater, Permanent: as `resolve`.
    """
    reference = references.get("password")
    return resolve(reference, folder) if reference is not None else None


def resolve(reference: str, folder: Path | str) -> Secret:
    """Return the secret that `reference` names; `folder` is the node's secrets folder. One trailing newline is cut.

    Raises:
        RetryLater: SECRET_MISSING: it does not exist or is empty (it may be about to be written), or its store does not answer.
        Permanent: SECRET_REFUSED: the reference, or what it leads to, is nothing that a secret may be read from.
    """
    if not matches(SECRET_REFERENCE_PATTERN, reference):
        # Not quoted: what was written in place of a reference may be the secret itself.
        raise Permanent(Code.SECRET_REFUSED, f"a secret reference has not the form {SECRET_FORMS}")
    scheme, _, rest = reference.partition(":")
    match scheme:
        case "env":
            value = os.environ.get(rest, "")
        case "file":
            value = _decode(_read_below(Path(folder), rest.split("/"), reference), reference)
        case "k8s":
            value = _decode(_read_mounted(Path(folder), rest.split("/"), reference), reference)
        case _:
            value = secret_stores.read(reference)
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


def _read_below(folder: Path, segments: list[str], reference: str) -> bytes:
    """Read the file whose path below `folder` is `segments`, through no symbolic link, at most one byte too much."""
    opened: list[int] = []
    try:
        opened.append(os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY))
        return _read_from(opened, segments, os.fstat(opened[-1]).st_uid, reference)
    except OSError as error:
        raise _explain(error, reference, folder) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _read_mounted(folder: Path, segments: list[str], reference: str) -> bytes:
    """Read a file of the secret that Kubernetes mounted at the first of `segments`, by way of its two links."""
    mount, first = segments[0], segments[1]
    opened: list[int] = []
    try:
        opened.append(os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY))
        owner = os.fstat(opened[-1]).st_uid
        opened.append(os.open(mount, _OPEN_FOLDER, dir_fd=opened[-1]))
        # A mount may be open to all, but then it is sticky: nobody else takes away the links that are checked below.
        _check(opened[-1], owner, reference, sticky=True)
        version = os.readlink(KUBERNETES_DATA, dir_fd=opened[-1])
        is_mount = os.readlink(first, dir_fd=opened[-1]) == f"{KUBERNETES_DATA}/{first}"
        if not is_mount or not matches(KUBERNETES_VERSION_PATTERN, version):
            raise Permanent(Code.SECRET_REFUSED, f"{reference} is not a secret as Kubernetes mounts it")
        return _read_from(opened, [version, *segments[1:]], owner, reference)
    except OSError as error:
        raise _explain(error, reference, folder) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _read_from(opened: list[int], segments: list[str], owner: int, reference: str) -> bytes:
    """Read the file at `segments` below the last of the `opened` folders. The caller closes them, and those added here."""
    for segment in segments[:-1]:
        opened.append(os.open(segment, _OPEN_FOLDER, dir_fd=opened[-1]))
        _check(opened[-1], owner, reference)
    opened.append(os.open(segments[-1], _OPEN_FILE, dir_fd=opened[-1]))
    _check(opened[-1], owner, reference)
    if not stat.S_ISREG(os.fstat(opened[-1]).st_mode):
        raise Permanent(Code.SECRET_REFUSED, f"{reference} is not a regular file")
    with os.fdopen(opened.pop(), "rb") as file:
        content = file.read(SECRET_BYTES_MAX + 1)
    if len(content) > SECRET_BYTES_MAX:
        raise Permanent(Code.SECRET_REFUSED, f"{reference} is longer than {SECRET_BYTES_MAX} bytes")
    return content


def _check(descriptor: int, owner: int, reference: str, *, sticky: bool = False) -> None:
    status = os.fstat(descriptor)
    if status.st_mode & stat.S_IWOTH and not (sticky and status.st_mode & stat.S_ISVTX):
        raise Permanent(Code.SECRET_REFUSED, f"{reference} can be changed by anyone; run `chmod o-w` on it")
    if status.st_uid not in (0, os.geteuid(), owner):
        raise Permanent(Code.SECRET_REFUSED, f"{reference} belongs to another user (uid {status.st_uid})")


def _explain(error: OSError, reference: str, folder: Path) -> Permanent | RetryLater:
    if error.errno == errno.ENOENT:
        return RetryLater(Code.SECRET_MISSING, f"{reference} does not exist below {folder}")
    if error.errno == errno.EINVAL:
        return Permanent(Code.SECRET_REFUSED, f"{reference} is not a secret as Kubernetes mounts it")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EMLINK):
        return Permanent(Code.SECRET_REFUSED, f"{reference} is a symbolic link, or leads through one")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Permanent(Code.SECRET_REFUSED, f"{reference} may not be read by this user")
    return RetryLater(Code.SECRET_MISSING, f"{reference} could not be read: {os.strerror(error.errno or 0)}")
