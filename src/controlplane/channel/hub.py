"""The hub's configuration, made from the template in deploy/nats: the same for one machine and for production."""

from pathlib import Path
from string import Template

from msgspec import Struct

from controlplane.channel import keys
from controlplane.channel.accounts import Accounts

TEMPLATE = "hub.conf"


class LeafTls(Struct, frozen=True, kw_only=True):
    """Files for TLS on the listener for leaves. With `ca_file` a leaf must show a certificate of one of those authorities.

    The server does not bind a certificate to a leaf's token: `leaf_admission` does, for tenants' accounts that ask it.
    `first` begins with TLS instead of a word in clear; the leaf must do so too.
    """

    cert_file: str
    key_file: str
    ca_file: str | None = None
    first: bool = False


def own_tls(keys_folder: Path) -> LeafTls:
    """Return the files of the keys folder: the hub's certificate, and our authorities for the leaves'."""
    return LeafTls(
        cert_file=str(keys_folder / keys.HUB_CERTIFICATE),
        key_file=str(keys_folder / keys.HUB_KEY),
        ca_file=str(keys_folder / keys.AUTHORITIES),
        first=True,
    )


def render(
    accounts: Accounts,
    *,
    folder: Path,
    host: str = "127.0.0.1",
    port: int,
    leaf_host: str = "127.0.0.1",
    leaf_port: int,
    monitoring_port: int | None = None,
    leaf_tls: LeafTls | None = None,
    server_name: str = "hub",
) -> str:
    """Return the text of the hub's configuration file. `folder` is where the hub keeps the claims it was given.

    The control plane connects to `host`:`port`, leaves link to `leaf_host`:`leaf_port`. Monitoring listens on loopback
    only, and only if a port is given.
    """
    monitoring = f'http: "127.0.0.1:{monitoring_port}"\n' if monitoring_port is not None else ""
    return Template(_template()).substitute(
        server_name=server_name,
        listen=f"{host}:{port}",
        monitoring=monitoring,
        operator_jwt=accounts.operator_jwt(),
        system_account=accounts.system_key,
        system_jwt=accounts.system_jwt(),
        control_account=accounts.control_key,
        control_jwt=accounts.control_jwt(),
        resolver_folder=folder / "claims",
        leaf_listen=f"{leaf_host}:{leaf_port}",
        leaf_tls=_tls(leaf_tls) if leaf_tls is not None else "",
    )


def _tls(tls: LeafTls) -> str:
    lines = [f'cert_file: "{tls.cert_file}"', f'key_file: "{tls.key_file}"']
    if tls.ca_file is not None:
        lines += [f'ca_file: "{tls.ca_file}"', "verify: true"]
    if tls.first:
        lines.append("handshake_first: true")
    return "\n  tls {\n    " + "\n    ".join(lines) + "\n  }"


def _template() -> str:
    installed = Path(__file__).with_name(TEMPLATE)
    in_repository = Path(__file__).parents[3] / "deploy" / "nats" / TEMPLATE
    return (installed if installed.exists() else in_repository).read_text()
