"""Every message of every released version still reads and writes as it did on the day of its release."""

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from tests.contracts import write_golden_files
from tests.contracts.examples import MESSAGES, NODE, SIGNER, as_file

from contracts import v1, v2
from contracts.envelope import Purpose, decode_document, decode_report, open_signed, verify

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("v*/*.json"))
ENVELOPES = sorted(GOLDEN.glob("v*/*.txt"))
DOWN = (v2.SyncReply, v2.Receipt, v2.Question)
SPOKEN: dict[str, tuple[Any, ...]] = {
    "v1": (*get_args(v1.AnyDocument), *get_args(v1.AnyUp), v1.Report, *DOWN),
    "v2": (*get_args(v2.AnyDocument), *get_args(v2.AnyUp), v2.Report, v2.CertificateReply, *DOWN),
}


def _identifier(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _type_of(path: Path) -> Any:
    """Return the message type whose tag the file carries."""
    fields = msgspec.json.decode(path.read_bytes())
    (found,) = [
        each
        for each in SPOKEN[path.parent.name]
        if fields.get(each.__struct_config__.tag_field) == each.__struct_config__.tag
    ]
    return found


@pytest.mark.parametrize("path", FILES, ids=_identifier)
def test_a_released_message_decodes_and_encodes_byte_for_byte(path: Path) -> None:
    """Decoding a golden file and encoding it again gives the same bytes."""
    assert as_file(msgspec.json.decode(path.read_bytes(), type=_type_of(path))) == path.read_bytes()


@pytest.mark.parametrize("path", FILES, ids=_identifier)
def test_a_released_message_still_means_the_same(path: Path) -> None:
    """Each golden file decodes to the very value that it was made from."""
    contract = int(path.parent.name[1:])
    assert msgspec.json.decode(path.read_bytes(), type=_type_of(path)) == MESSAGES[contract][path.stem]


@pytest.mark.parametrize("version", SPOKEN)
def test_every_message_of_a_version_has_a_golden_file(version: str) -> None:
    """A message type without a golden file is not released; `write_golden_files` makes it."""
    assert {_type_of(path) for path in FILES if path.parent.name == version} == set(SPOKEN[version])


@pytest.mark.parametrize("path", ENVELOPES, ids=_identifier)
def test_a_released_signature_still_verifies(path: Path) -> None:
    """What was signed when the version was released is accepted, and decodes to the golden body."""
    contract = int(path.parent.name[1:])
    signed = open_signed(path.read_bytes().rstrip(b"\n"))
    purpose = Purpose.REPORT if path.stem == "signed-report" else Purpose.DOCUMENT
    raw = verify(signed, keys=frozenset({SIGNER.public, NODE.public}), purpose=purpose)
    body = decode_report(raw, contract) if purpose is Purpose.REPORT else decode_document(raw, contract)
    assert body == MESSAGES[contract][path.stem.removeprefix("signed-")]


@pytest.mark.parametrize("version", SPOKEN)
def test_a_document_with_a_field_of_tomorrow_is_still_read(version: str) -> None:
    """A newer control plane may add fields to what comes down; older nodes read what they know."""
    contract = int(version[1:])
    for kind in ("pipeline", "connection", "trust", "index", "requires"):
        fields = msgspec.json.decode((GOLDEN / version / f"{kind}.json").read_bytes())
        raw = msgspec.json.encode({**fields, "of_tomorrow": {"anything": [1]}})
        assert decode_document(raw, contract) == MESSAGES[contract][kind]


@pytest.mark.parametrize("name", write_golden_files.enums())
def test_released_words_are_never_renamed_or_taken_away(name: str) -> None:
    """Every code, phase and kind that was ever released still exists, and every one that exists is released."""
    assert set(write_golden_files.released_words()[name]) == {each.value for each in write_golden_files.enums()[name]}


def test_the_writer_of_golden_files_refuses_to_change_a_released_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes what is missing, changes nothing on a second run, and stops at a file that would change."""
    monkeypatch.setattr(write_golden_files, "GOLDEN", tmp_path)
    assert write_golden_files.main() == 0
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert write_golden_files.main() == 0
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")} == written
    (tmp_path / "v1" / "trust.json").write_bytes(b"{}\n")
    (tmp_path / "v2" / "index.json").unlink()
    assert write_golden_files.main() == 1
    assert "trust.json is released" in capsys.readouterr().err
    assert not (tmp_path / "v2" / "index.json").exists()
