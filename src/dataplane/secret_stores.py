"""Secrets in the customer's own stores, HashiCorp Vault and AWS Secrets Manager, by their official clients.

In flow a reference of the form that `contracts.names` allows, out flow the secret's text. Where the store is and how this node
proves itself there is the node's own business, and no document's: Vault by `VAULT_ADDR`, `VAULT_NAMESPACE`, `VAULT_CACERT` and a
token, AWS by the usual chain of credentials and region. A reference cannot name a host, an account or a region.

- `vault:MOUNT/PATH#FIELD`: a field of a secret in a KV engine of version 2. The token is `VAULT_TOKEN`, or the content of the file
  that `VAULT_TOKEN_FILE` names, which is read anew each time, as an agent renews it.
- `aws-sm:NAME` or `aws-sm:NAME#FIELD`: a secret's string, or a field of the JSON object that it is.

Each call asks once and waits a bounded time; whoever called retries with its own pace. Redirects are not followed: a token would go
along. No text of a client's error is passed on, because it may quote what was asked for. Called by `secrets`.
"""

import json
import os
from pathlib import Path
from typing import Any

from contracts.codes import Code
from dataplane.failures import Permanent, RetryLater

CONNECT_SECONDS_MAX = 3.0
READ_SECONDS_MAX = 5.0
TOKEN_BYTES_MAX = 8192


def read(reference: str) -> str:
    """Return the secret that a `vault:` or `aws-sm:` reference names.

    Raises:
        RetryLater: SECRET_MISSING: it does not exist, this node may not read it, or the store does not answer.
        Permanent: SECRET_REFUSED: the client is not installed, or what lies there is no text.
    """
    scheme, _, rest = reference.partition(":")
    path, _, field = rest.partition("#")
    try:
        found = _vault(path) if scheme == "vault" else _aws(path, as_object=bool(field))
    except ModuleNotFoundError as error:
        extra = "vault" if scheme == "vault" else "aws"
        words = f"{reference} needs a client that is not installed: pip install 'pointsman[{extra}]'"
        raise Permanent(Code.SECRET_REFUSED, words) from error
    value = found.get(field) if isinstance(found, dict) else found
    if value is None:
        raise RetryLater(Code.SECRET_MISSING, f"{reference} does not exist in the store")
    if not isinstance(value, str):
        raise Permanent(Code.SECRET_REFUSED, f"{reference} is no text")
    return value


def _vault(path: str) -> Any:
    import hvac
    import requests

    mount, _, rest = path.partition("/")
    try:
        client = hvac.Client(
            token=_vault_token(),
            namespace=os.environ.get("VAULT_NAMESPACE"),
            timeout=(CONNECT_SECONDS_MAX, READ_SECONDS_MAX),
            allow_redirects=False,
        )
        answer = client.secrets.kv.v2.read_secret_version(rest, mount_point=mount, raise_on_deleted_version=True)
        return answer["data"]["data"]
    except hvac.exceptions.InvalidPath:
        return None
    except (hvac.exceptions.VaultError, requests.RequestException, OSError, KeyError, TypeError, ValueError) as error:
        raise _silent("vault", path, error) from None


def _vault_token() -> str | None:
    file = os.environ.get("VAULT_TOKEN_FILE")
    if file is None:
        return os.environ.get("VAULT_TOKEN")
    with Path(file).open("rb") as stream:
        return stream.read(TOKEN_BYTES_MAX).decode().strip()


def _aws(name: str, *, as_object: bool) -> Any:
    import boto3
    import botocore.config
    import botocore.exceptions

    config = botocore.config.Config(
        connect_timeout=CONNECT_SECONDS_MAX, read_timeout=READ_SECONDS_MAX, retries={"total_max_attempts": 1}
    )
    try:
        text = boto3.session.Session().client("secretsmanager", config=config).get_secret_value(SecretId=name)
        value = text.get("SecretString")
        return json.loads(value) if as_object and value is not None else value
    except botocore.exceptions.ClientError as error:
        if error.response.get("Error", {}).get("Code") == "ResourceNotFoundException":
            return None
        raise _silent("aws-sm", name, error) from None
    except (botocore.exceptions.BotoCoreError, OSError, ValueError) as error:
        raise _silent("aws-sm", name, error) from None


def _silent(scheme: str, path: str, error: Exception) -> RetryLater:
    return RetryLater(Code.SECRET_MISSING, f"{scheme}:{path} could not be read from its store: {type(error).__name__}")
