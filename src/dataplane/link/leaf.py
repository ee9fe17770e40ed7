"""The leaf's configuration, made from the template in deploy/nats: the same for one machine and for production."""

from pathlib import Path
from string import Template

from msgspec import Struct

from dataplane.link.certificate import AUTHORITIES, CERTIFICATE, TLS_KEY

TEMPLATE = "leaf.conf"
CONFIGURATION, CREDENTIALS, CTL_SEED, DATA_SEED, LEAF_SEED = "leaf.conf", "leaf.creds", "ctl.nk", "data.nk", "leaf.nk"
"""What lies in a leaf's folder."""

MEGABYTE = 1 << 20


class Sizes(Struct, frozen=True, kw_only=True):
    """The leaf's bounds, in bytes."""

    payload_bytes_max: int = 8 * MEGABYTE
    memory_bytes_max: int = 64 * MEGABYTE
    ctl_file_bytes_max: int = 512 * MEGABYTE
    data_file_bytes_max: int = 64 << 30
    """Where buffers lie; each pipeline's own bound counts against it."""


class RemoteTls(Struct, frozen=True, kw_only=True):
    """How the leaf checks the hub, and what it shows of itself. Files that must exist: the leaf does not start otherwise."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    first: bool = False
    """Begin with TLS, not with a word in clear. The hub must do so too, and one with authorities of its own does."""


def own_tls(folder: Path, hub_url: str) -> RemoteTls | None:
    """Return the files of the leaf's folder, if the hub is reached by TLS and they are there."""
    if not hub_url.startswith(("tls:", "wss:")) or not (folder / AUTHORITIES).exists():
        return None
    return RemoteTls(
        ca_file=str(folder / AUTHORITIES),
        cert_file=str(folder / CERTIFICATE),
        key_file=str(folder / TLS_KEY),
        first=hub_url.startswith("tls:"),
    )


def render(
    *,
    folder: Path,
    data_plane: str,
    ctl_key: str,
    data_key: str,
    hub_url: str | None,
    host: str = "127.0.0.1",
    port: int,
    monitoring_port: int | None = None,
    tls: RemoteTls | None = None,
    sizes: Sizes | None = None,
) -> str:
    """Return the text of the leaf's configuration file.

    `folder` is the leaf's own: its streams and its credentials lie there. `ctl_key` and `data_key` are the public keys of
    the local users. Without `hub_url` the leaf has no remote at all.
    """
    sizes = sizes or Sizes()
    return Template(_template()).substitute(
        server_name=f"leaf-{data_plane}",
        listen=f"{host}:{port}",
        monitoring=f'http: "127.0.0.1:{monitoring_port}"\n' if monitoring_port is not None else "",
        store_folder=folder,
        domain=f"leaf-{data_plane}",
        data_plane=data_plane,
        ctl_key=ctl_key,
        data_key=data_key,
        max_payload_bytes=sizes.payload_bytes_max,
        memory_bytes_max=sizes.memory_bytes_max,
        file_bytes_max=sizes.ctl_file_bytes_max + sizes.data_file_bytes_max,
        ctl_file_bytes_max=sizes.ctl_file_bytes_max,
        data_file_bytes_max=sizes.data_file_bytes_max,
        leafnodes=_remote(folder, hub_url, tls) if hub_url is not None else "",
    )


def credentials(token: str, seed: str) -> str:
    """Return the text of the leaf's credentials file. It holds a secret: write it for its owner only."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _remote(folder: Path, hub_url: str, tls: RemoteTls | None) -> str:
    # A certificate file that is missing keeps the whole leaf from starting, so one that is not there is left out: the
    # hub then refuses the link, and everything local goes on.
    files = {"ca_file": tls.ca_file, "cert_file": tls.cert_file, "key_file": tls.key_file} if tls is not None else {}
    present = {name: path for name, path in files.items() if path is not None and Path(path).is_file()}
    if "cert_file" not in present or "key_file" not in present:
        present = {name: path for name, path in present.items() if name == "ca_file"}
    lines = [f'{name}: "{path}"' for name, path in present.items()]
    if tls is not None and tls.first:
        lines.append("handshake_first: true")
    secured = f"\n      tls {{ {', '.join(lines)} }}" if lines else ""
    return f"""
leafnodes {{
  reconnect: "1s"
  remotes: [
    {{
      urls: ["{hub_url}"]
      account: CTL
      credentials: "{folder / CREDENTIALS}"
      # Nothing from above reaches what is stored here; what comes down are documents, questions and answers.
      deny_imports: ["$JS.>", "$KV.>", "facts.>"]{secured}
    }}
  ]
}}"""


def _template() -> str:
    installed = Path(__file__).with_name(TEMPLATE)
    in_repository = Path(__file__).parents[3] / "deploy" / "nats" / TEMPLATE
    return (installed if installed.exists() else in_repository).read_text()
