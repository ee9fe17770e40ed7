"""Secrets are resolved from where the customer put them, from nowhere else, and are never shown."""

import copy
import os
import pickle
import socket
from pathlib import Path

import pytest

from contracts.codes import Code
from dataplane.failures import Failure, Permanent, RetryLater
from dataplane.secrets import SECRET_BYTES_MAX, Secret, resolve

VALUE = "hunter2-not-to-be-seen"


@pytest.fixture
def secrets(folder: Path) -> Path:
    """A secrets folder with one secret, and another file outside that no reference may reach."""
    (folder / "outside").write_text("outside")
    path = folder / "secrets"
    (path / "deep").mkdir(parents=True)
    (path / "shop").write_text(VALUE + "\n")
    (path / "deep" / "shop").write_text(VALUE + "\r\n")
    return path


@pytest.mark.parametrize("reference", ["file:shop", "file:deep/shop"])
def test_a_file_below_the_folder_is_read_without_its_last_newline(secrets: Path, reference: str) -> None:
    """One newline at the end is not part of the secret."""
    assert resolve(reference, secrets).reveal() == VALUE


def test_only_one_newline_is_cut(secrets: Path) -> None:
    """A secret may end with a newline or a carriage return of its own."""
    (secrets / "odd").write_bytes(b"a\n\n")
    (secrets / "return").write_bytes(b"a\r")
    assert (resolve("file:odd", secrets).reveal(), resolve("file:return", secrets).reveal()) == ("a\n", "a\r")


def test_an_environment_variable_is_read(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`env:` looks into the process's environment."""
    monkeypatch.setenv("SHOP_PASSWORD", VALUE)
    assert resolve("env:SHOP_PASSWORD", secrets).reveal() == VALUE


@pytest.mark.parametrize(
    "reference",
    [
        "file:../outside",
        "file:deep/../../outside",
        "file:/etc/passwd",
        "file:./shop",
        "file:.hidden",
        "file:deep//shop",
        "file:shop\n",
        "file:shop\0",
        "file:",
        "file:" + "/".join("a" * 9),
        "env:",
        "env:lower",
        "http://example.org",
        "",
        VALUE,
    ],
)
def test_what_is_no_plain_reference_is_refused_and_not_quoted(secrets: Path, reference: str) -> None:
    """Neither a path out of the folder nor a secret in place of a reference gets further, or into a message."""
    with pytest.raises(Permanent) as refused:
        resolve(reference, secrets)
    assert refused.value.code is Code.SECRET_REFUSED
    assert VALUE not in str(refused.value)


def test_a_symbolic_link_is_refused(secrets: Path) -> None:
    """A link as the file, wherever it leads, is no secret."""
    (secrets / "link").symlink_to(secrets.parent / "outside")
    (secrets / "inner").symlink_to("shop")
    for name in ("link", "inner"):
        assert code_of(f"file:{name}", secrets) is Code.SECRET_REFUSED


def test_a_symbolic_link_on_the_way_is_refused(secrets: Path) -> None:
    """A link as a folder is not followed either."""
    (secrets / "way").symlink_to(secrets.parent, target_is_directory=True)
    assert code_of("file:way/outside", secrets) is Code.SECRET_REFUSED


def test_what_is_no_regular_file_is_refused_without_waiting(secrets: Path) -> None:
    """A folder, a pipe without a writer and a socket are refused at once."""
    os.mkfifo(secrets / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(secrets / "socket"))
        for name in ("deep", "pipe", "socket"):
            assert code_of(f"file:{name}", secrets) is Code.SECRET_REFUSED


def test_a_huge_file_is_refused(secrets: Path) -> None:
    """A secret has a bound, and one byte more is too much."""
    (secrets / "most").write_bytes(b"x" * SECRET_BYTES_MAX)
    (secrets / "more").write_bytes(b"x" * (SECRET_BYTES_MAX + 1))
    assert len(resolve("file:most", secrets).reveal()) == SECRET_BYTES_MAX
    assert code_of("file:more", secrets) is Code.SECRET_REFUSED


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b"])
def test_what_is_no_text_is_refused(secrets: Path, content: bytes) -> None:
    """Bytes that are not UTF-8, and NUL, cannot be a password."""
    (secrets / "binary").write_bytes(content)
    assert code_of("file:binary", secrets) is Code.SECRET_REFUSED


def test_what_anyone_may_change_is_refused(secrets: Path) -> None:
    """A file, or a folder on the way, that is writable for all is not the customer's word."""
    (secrets / "shop").chmod(0o666)
    assert code_of("file:shop", secrets) is Code.SECRET_REFUSED
    (secrets / "deep").chmod(0o777)
    assert code_of("file:deep/shop", secrets) is Code.SECRET_REFUSED


if os.geteuid() == 0:  # only root can give a file away; whoever cannot has no such test, so that none is skipped

    def test_a_file_of_another_user_is_refused(secrets: Path) -> None:
        """A file counts if it is ours, root's, or the folder owner's."""
        os.chown(secrets / "shop", 12345, 12345)
        assert code_of("file:shop", secrets) is Code.SECRET_REFUSED
        os.chown(secrets, 12345, 12345)
        assert resolve("file:shop", secrets).reveal() == VALUE


@pytest.mark.parametrize("reference", ["file:none", "file:deep/none", "file:none/shop", "env:POINTSMAN_NOT_SET"])
def test_what_is_not_there_yet_is_retried(secrets: Path, reference: str) -> None:
    """A secret may be created later: the failure is of the kind that passes."""
    with pytest.raises(RetryLater) as missing:
        resolve(reference, secrets)
    assert missing.value.code is Code.SECRET_MISSING


def test_an_empty_file_is_retried(secrets: Path) -> None:
    """A file that is just being written is not an empty password."""
    (secrets / "empty").write_text("\n")
    assert code_of("file:empty", secrets) is Code.SECRET_MISSING


def test_a_missing_folder_is_retried(secrets: Path) -> None:
    """Without the folder every secret is missing."""
    assert code_of("file:shop", secrets.parent / "none") is Code.SECRET_MISSING


def test_a_secret_is_never_shown() -> None:
    """No way of printing, formatting or inspecting a secret gives its value."""
    secret = Secret(VALUE)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", f"{secret!r}", repr([secret])]
    assert not [text for text in shown if VALUE in text]
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_is_neither_pickled_nor_copied(leak: object) -> None:
    """A secret does not leave its process by accident."""
    with pytest.raises(TypeError):
        leak(Secret(VALUE))  # type: ignore[operator]


def test_secrets_compare_by_value() -> None:
    """A rotated secret can be told from the old one, without showing either."""
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


def code_of(reference: str, folder: Path) -> Code:
    with pytest.raises(Failure) as failure:
        resolve(reference, folder)
    assert VALUE not in str(failure.value)
    return failure.value.code


# ---- Mounted by Kubernetes -------------------------------------------------------------------------------------------


def _mount(secrets: Path, version: str, value: str) -> Path:
    """Write a version of a secret as the kubelet does, and exchange it whole."""
    mount = secrets / "db"
    mount.mkdir(exist_ok=True)
    (mount / version).mkdir()
    (mount / version / "password").write_text(value)
    (mount / ".data_tmp").symlink_to(version)
    (mount / ".data_tmp").rename(mount / "..data")
    if not (mount / "password").is_symlink():
        (mount / "password").symlink_to("..data/password")
    return mount


def test_a_mounted_secret_is_read_and_its_rotation_taken_up(secrets: Path) -> None:
    """Through exactly the two links that Kubernetes makes, also from a mount that is sticky and open to all."""
    mount = _mount(secrets, "..2026_03_04_05_06_07.123456789", VALUE)
    mount.chmod(0o1777)
    assert resolve("k8s:db/password", secrets).reveal() == VALUE
    _mount(secrets, "..2026_03_05_05_06_07.987654321", "rotated")
    assert resolve("k8s:db/password", secrets).reveal() == "rotated"
    _code(secrets, "file:db/password", Code.SECRET_REFUSED)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("password", "../../outside"),
        ("password", "/etc/passwd"),
        ("password", "..data/other"),
        ("password", "..data/../../../outside"),
        ("..data", "../.."),
        ("..data", "/etc"),
        ("..data", "..2026_1/.."),
        ("..data", "elsewhere"),
    ],
)
def test_a_mount_with_any_other_link_is_refused(secrets: Path, link: str, target: str) -> None:
    """Whoever can write into the mount still cannot lead out of it."""
    mount = _mount(secrets, "..2026_1", VALUE)
    (mount / "elsewhere").mkdir()
    (mount / "elsewhere" / "password").write_text("outside")
    (mount / link).unlink()
    (mount / link).symlink_to(target)
    _code(secrets, "k8s:db/password", Code.SECRET_REFUSED)


def test_a_mounted_folder_that_is_none_is_refused_or_missed(secrets: Path) -> None:
    """A plain file is no mount, a link instead of the mounted version leads nowhere, and one that is not there yet may come."""
    _code(secrets, "k8s:deep/shop", Code.SECRET_MISSING)
    _code(secrets, "k8s:none/password", Code.SECRET_MISSING)
    mount = _mount(secrets, "..2026_1", VALUE)
    (mount / "..2026_1" / "password").unlink()
    (mount / "..2026_1" / "password").symlink_to(secrets.parent / "outside")
    _code(secrets, "k8s:db/password", Code.SECRET_REFUSED)
    mount.chmod(0o777)
    _code(secrets, "k8s:db/password", Code.SECRET_REFUSED)


def _code(secrets: Path, reference: str, code: Code) -> None:
    with pytest.raises(Failure) as failure:
        resolve(reference, secrets)
    assert failure.value.code is code
    assert VALUE not in str(failure.value)
