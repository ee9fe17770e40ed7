"""Secrets in stores of the customer's: AWS against moto; Vault's client against a fake of ours that only answers as Vault does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from contracts.codes import Code
from contracts.names import SECRET_REFERENCE_PATTERN, matches
from dataplane.failures import Failure
from dataplane.secrets import resolve

VALUE = "hunter2-not-to-be-seen"


class FakeVault:
    """Answers as a KV engine of version 2 does. It is no Vault: what a real one does beyond that is not tested here."""

    def __init__(self) -> None:
        self.token = "first"
        self.secrets: dict[str, dict[str, Any]] = {"secret/data/shop/db": {"password": VALUE, "port": 5432}}
        self.redirects = False
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.removeprefix("/v1/").partition("?")[0]
                fake.asked.append(path)
                status, body = fake.answer(path, self.headers.get("X-Vault-Token"))
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", f"{fake.url}/v1/secret/data/elsewhere")
                payload = json.dumps(body).encode()
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, Any]]:
        if self.redirects:
            return 307, {}
        if token != self.token:
            return 403, {"errors": [f"permission denied for {token}"]}
        if path not in self.secrets:
            return 404, {"errors": []}
        return 200, {"data": {"data": self.secrets[path], "metadata": {"version": 1}}}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def vault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVault]:
    fake = FakeVault()
    (folder / "token").write_text("first\n")
    monkeypatch.setenv("VAULT_ADDR", fake.url)
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(folder / "token"))
    monkeypatch.delenv("VAULT_NAMESPACE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield fake
    fake.close()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in (
        ("ACCESS_KEY_ID", "testing"),
        ("SECRET_ACCESS_KEY", "testing"),
        ("DEFAULT_REGION", "eu-west-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    with mock_aws():
        client = boto3.client("secretsmanager")
        client.create_secret(Name="shop/db", SecretString=json.dumps({"password": VALUE, "port": 5432}))
        client.create_secret(Name="plain", SecretString=VALUE)
        yield client


def _code(folder: Path, reference: str) -> Code:
    with pytest.raises(Failure) as failure:
        resolve(reference, folder)
    assert VALUE not in str(failure.value)
    assert failure.value.__cause__ is None
    return failure.value.code


def test_a_secret_of_aws_is_read_and_its_rotation_taken_up(folder: Path, aws: Any) -> None:
    """A whole string, or a field of a JSON object; the next call gets what was rotated, without a restart."""
    assert resolve("aws-sm:plain", folder).reveal() == VALUE
    assert resolve("aws-sm:shop/db#password", folder).reveal() == VALUE
    aws.put_secret_value(SecretId="shop/db", SecretString=json.dumps({"password": "rotated"}))
    assert resolve("aws-sm:shop/db#password", folder).reveal() == "rotated"


def test_what_aws_does_not_give_has_a_code_and_quotes_nothing(folder: Path, aws: Any) -> None:
    """Not there, no such field, no text, no JSON: each is refused or waited for, and no value is in a message."""
    assert _code(folder, "aws-sm:none") is Code.SECRET_MISSING
    assert _code(folder, "aws-sm:shop/db#none") is Code.SECRET_MISSING
    assert _code(folder, "aws-sm:shop/db#port") is Code.SECRET_REFUSED
    assert _code(folder, "aws-sm:plain#password") is Code.SECRET_MISSING


def test_a_secret_of_vault_is_read_and_rotation_of_secret_and_token_taken_up(folder: Path, vault: FakeVault) -> None:
    """The official client, against a fake: the next call gets the new value, with the token that the file holds by then."""
    assert resolve("vault:secret/shop/db#password", folder).reveal() == VALUE
    vault.secrets["secret/data/shop/db"]["password"] = "rotated"
    vault.token = "second"
    assert _code(folder, "vault:secret/shop/db#password") is Code.SECRET_MISSING
    (folder / "token").write_text("second\n")
    assert resolve("vault:secret/shop/db#password", folder).reveal() == "rotated"


def test_what_vault_does_not_give_has_a_code_and_a_redirect_is_not_followed(folder: Path, vault: FakeVault) -> None:
    """Against a fake: not there, no such field, no text, elsewhere, and nobody at the address."""
    assert _code(folder, "vault:secret/none#password") is Code.SECRET_MISSING
    assert _code(folder, "vault:secret/shop/db#none") is Code.SECRET_MISSING
    assert _code(folder, "vault:secret/shop/db#port") is Code.SECRET_REFUSED
    vault.redirects = True
    assert _code(folder, "vault:secret/shop/db#password") is Code.SECRET_MISSING
    assert "secret/data/elsewhere" not in vault.asked
    vault.close()
    assert _code(folder, "vault:secret/shop/db#password") is Code.SECRET_MISSING


@pytest.mark.parametrize(
    "reference",
    [
        "vault:secret/shop",
        "vault:secret#password",
        "vault:secret/../sys/seal#x",
        "vault:https://evil.example/secret#x",
        "vault:/secret/shop#x",
        "aws-sm:arn:aws:secretsmanager:eu-west-1:1:secret:x",
        "aws-sm:",
        "aws-sm:a#",
        "k8s:password",
        "k8s:db/..data",
        "k8s:../db/password",
    ],
)
def test_no_reference_leads_out_of_what_the_node_names(reference: str) -> None:
    """Hosts, accounts, regions and paths upwards have no place in a reference."""
    assert not matches(SECRET_REFERENCE_PATTERN, reference)
