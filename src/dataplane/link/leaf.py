"""The leaf's configuration, made from the template in deploy/nats: the same for one machine and for production."""

import base64
from pathlib import Path
from string import Template

import msgspec
from msgspec import Struct

from dataplane.files import write_secret
from dataplane.link.certificate import AUTHORITIES, CERTIFICATE, is_whole

TEMPLATE = "leaf.conf"
CONFIGURATION, CREDENTIALS, CTL_SEED, DATA_SEED, LEAF_SEED = "leaf.conf", "leaf.creds", "ctl.nk", "data.nk", "leaf.nk"
RELOAD_SEED, ASIDE = "reload.nk", "leaf.remote"
_REMOTE_MARK = "\nleafnodes {"
"""What lies in a leaf's folder."""

MEGABYTE = 1 << 20


class _Claims(Struct):
    iss: str


class Sizes(Struct, frozen=True, kw_only=True):
    """The leaf's bounds, in bytes."""

    payload_bytes_max: int = 8 * MEGABYTE
    memory_bytes_max: int = 64 * MEGABYTE
    ctl_file_bytes_max: int = 512 * MEGABYTE
    data_file_bytes_max: int = 64 << 30
    """Where buffers lie; each pipeline's own bound counts against it."""


class RemoteTls(Struct, frozen=True, kw_only=True):
    """How the leaf checks the hub, and what it shows of itself. It does not start without these files: see `settle`."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    first: bool = False
    """Begin with TLS, not with a word in clear. The hub must do so too, and one with authorities of its own does."""


def own_tls(folder: Path, hub_url: str, *, always: bool = False) -> RemoteTls | None:
    """Return the files of the leaf's folder, if the hub is reached by TLS and there is a certificate, or `always`."""
    if not hub_url.startswith(("tls:", "wss:")) or not (always or (folder / CERTIFICATE).exists()):
        return None
    return RemoteTls(
        ca_file=str(folder / AUTHORITIES),
        cert_file=str(folder / CERTIFICATE),
        key_file=str(folder / CERTIFICATE),
        first=hub_url.startswith("tls:"),
    )


_RELOADING = Template(
    """
      {
        # May have this server read its files again, which a renewed certificate needs.
        nkey: "$reload_key"
        permissions {
          publish { allow: ["$$SYS.REQ.SERVER.PING.IDZ", "$$SYS.REQ.SERVER.*.RELOAD"] }
          subscribe { allow: ["_INBOX.>"] }
        }
      }
    """
)


def settle(folder: Path) -> bool:
    """Make the leaf's configuration one that it starts with, and return whether it has the hub in it.

    nats-server does not start at all with a certificate file that is missing or not whole, and rows would stop. So the part
    that names the hub is put aside while that is so, and back when the files are there again. To be run before each start.

    Raises:
        OSError: the configuration can be neither read nor written.
    """
    conf, aside = folder / CONFIGURATION, folder / ASIDE
    alone, mark, remote = conf.read_text().partition(_REMOTE_MARK)
    if not mark and aside.exists():
        remote = aside.read_text()
    elif not mark:
        return False
    with_hub = "tls {" not in remote or is_whole(folder)
    if not with_hub:
        write_secret(aside, remote)
    if with_hub != bool(mark):
        write_secret(conf, alone + (_REMOTE_MARK + remote if with_hub else ""))
    if with_hub:
        aside.unlink(missing_ok=True)
    return with_hub


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
    reload_key: str | None = None,
    sizes: Sizes | None = None,
) -> str:
    """Return the text of the leaf's configuration file.

    `folder` is the leaf's own: its streams and its credentials lie there. `ctl_key` and `data_key` are the public keys of
    the local users; with `reload_key` there is one more, who may have the leaf read its files again and nothing else.
    Without `hub_url` the leaf has no remote at all.
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
        system_users=_RELOADING.substitute(reload_key=reload_key) if reload_key is not None else "",
        leafnodes=_remote(folder, hub_url, tls) if hub_url is not None else "",
    )


def issuer_of(folder: Path) -> str | None:
    """Return who signed the leaf's token; None if there is no token that can be read."""
    try:
        text = (folder / CREDENTIALS).read_text()
        claims = text.split("-----BEGIN NATS USER JWT-----\n")[1].split("\n")[0].split(".")[1]
        return msgspec.json.decode(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)), type=_Claims).iss
    except (OSError, IndexError, ValueError, msgspec.DecodeError):
        return None


def credentials(token: str, seed: str) -> str:
    """Return the text of the leaf's credentials file. It holds a secret: write it for its owner only."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _remote(folder: Path, hub_url: str, tls: RemoteTls | None) -> str:
    files = {"ca_file": tls.ca_file, "cert_file": tls.cert_file, "key_file": tls.key_file} if tls is not None else {}
    lines = [f'{name}: "{path}"' for name, path in files.items() if path is not None]
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
