"""What a node knows of itself: written once by `pointsman node join`, read by the agent at each start.

Everything in it is public but for what the named files hold: seeds, which only their owner may read.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from contracts.names import HostName, PublicKey, ResourceName, TenantId

FILE_NAME = "node.json"


class NodeConfig(Struct, frozen=True, kw_only=True):
    """One node's identity and surroundings. Paths are absolute."""

    tenant: TenantId
    account: PublicKey
    """The tenant's account at the hub."""
    data_plane: ResourceName
    node: ResourceName
    root_key: PublicKey
    """Pinned at enrolment: it signs the list of keys that may sign documents."""
    seed_file: str
    """The node's own nkey, made on the node."""
    leaf_url: str
    ctl_seed_file: str
    """The local user of the leaf's CTL account; only the agent reads it."""
    data_seed_file: str
    """The local user of the leaf's DATA account, for workers."""
    secrets_folder: str
    contract_max: int = 2
    """The highest contract version that this node speaks; 1 pins it to the older one."""
    metrics_host: HostName = "127.0.0.1"
    metrics_port: int | None = None


def read(folder: Path) -> NodeConfig:
    """Read the configuration of the node that lives in `folder`.

    Raises:
        FileNotFoundError: nobody has joined from this folder.
        msgspec.ValidationError: the file has not the form that `join` writes.
    """
    return msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=NodeConfig)


def write(folder: Path, config: NodeConfig) -> None:
    """Write the configuration into `folder`, replacing it whole."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{FILE_NAME}.new"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
    draft.replace(folder / FILE_NAME)
