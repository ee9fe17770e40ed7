"""Make what the vendor's side needs before its first start: keys, the hub's configuration, the control plane's settings.

    python deploy/prepare.py --folder /etc/pointsman --hub-host 10.0.0.5 --leaf-url tls://hub.example.com:7422

Run again it changes no key; configuration and settings are written anew from the arguments. The operator's key stands in
FOLDER/keys/operator.key afterwards, for `pointsman create tenant`; nothing of it is printed.

Leaves link with certificates of the control plane's own authority, which also makes the hub's, for the host of --leaf-url.
In a folder that was prepared before there were certificates they go on linking without, until --leaf-certificates is given.
"""

import argparse
import hashlib
import json
import os
import secrets
from pathlib import Path

from controlplane import settings
from controlplane.channel import hub, keys
from controlplane.channel.accounts import Accounts

CLIENT_PORT, LEAF_PORT = 4222, 7422


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)


def _secret(path: Path) -> str:
    if not path.exists():
        _write(path, secrets.token_urlsafe(32) + "\n")
    return path.read_text().strip()


def _has_certificates(file: Path) -> bool:
    """Say whether leaves link with certificates by the settings of before; in a new folder they do."""
    return not file.exists() or settings.read(file).hub.leaf_certificates


def prepare(arguments: argparse.Namespace) -> None:
    """Write everything below the folder."""
    folder: Path = arguments.folder.absolute()
    keys.create(folder / "keys")
    operator = _secret(folder / "keys" / "operator.key")
    _secret(folder / "keys" / "database.password")
    tls = None
    certificates = arguments.leaf_certificates or _has_certificates(folder / "settings.json")
    if arguments.tls_cert is not None:
        certificates = False
        tls = hub.LeafTls(cert_file=arguments.tls_cert, key_file=arguments.tls_key, ca_file=arguments.tls_ca)
    elif certificates:
        keys.hub_certificate(folder / "keys", arguments.leaf_url)
        tls = hub.own_tls(folder / "keys")
    text = hub.render(
        Accounts(keys.read(folder / "keys")),
        folder=arguments.hub_folder,
        host=arguments.hub_listen,
        port=CLIENT_PORT,
        leaf_host="0.0.0.0",  # noqa: S104 - leaves come from other networks
        leaf_port=LEAF_PORT,
        leaf_tls=tls,
    )
    _write(folder / "hub.conf", text)
    wanted = {
        "api": {"host": arguments.api_listen, "port": 8080},
        "database": {
            "host": arguments.database_host,
            "name": "pointsman",
            "user": "pointsman",
            "password_file": str(folder / "keys" / "database.password"),
        },
        "hub": {
            "url": f"nats://{arguments.hub_host}:{CLIENT_PORT}",
            "leaf_url": arguments.leaf_url,
            "leaf_certificates": certificates,
        },
        "keys_folder": str(folder / "keys"),
        "operator_key_sha256": hashlib.sha256(operator.encode()).hexdigest(),
    }
    _write(folder / "settings.json", json.dumps(wanted, indent=2) + "\n")
    settings.read(folder / "settings.json")


def main() -> None:
    """Read the arguments and prepare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where keys, hub.conf and settings.json go")
    parser.add_argument("--hub-folder", type=Path, default=Path("/var/lib/pointsman/hub"), help="the hub's own folder")
    parser.add_argument("--hub-host", default="127.0.0.1", help="where the control plane reaches the hub")
    parser.add_argument("--hub-listen", default="127.0.0.1", help="where the hub listens for the control plane")
    parser.add_argument("--api-listen", default="127.0.0.1", help="where the API listens; put TLS in front of it")
    parser.add_argument("--database-host", default="127.0.0.1", help="the control plane's PostgreSQL")
    parser.add_argument("--leaf-url", required=True, help="where the customers' leaves reach the hub")
    parser.add_argument(
        "--leaf-certificates", action="store_true", help="require leaves' certificates in a folder of before them"
    )
    parser.add_argument("--tls-cert", help="a certificate of your own for the hub; leaves then show none of ours")
    parser.add_argument("--tls-key", help="its key")
    parser.add_argument("--tls-ca", help="leaves must then show a certificate of this authority")
    prepare(parser.parse_args())


if __name__ == "__main__":
    main()
