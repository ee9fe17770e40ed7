"""The control plane's settings: one typed JSON file, read once at the start. Secrets are in files that it names."""

from pathlib import Path
from typing import Annotated

import msgspec
import psycopg.conninfo
from msgspec import Meta, Struct

from contracts.names import HostName, Port

LogLevel = Annotated[str, Meta(pattern="^(debug|info|warning|error)$(?!\n)")]


class ApiSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the HTTP API listens. Port 0 takes a free one."""

    host: HostName = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080


class DatabaseSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach the control plane's own PostgreSQL. Without `password_file` no password is given."""

    host: HostName
    port: Port = 5432
    name: str = "pointsman"
    user: str = "pointsman"
    password_file: str | None = None

    def password(self) -> str:
        """Read the password, empty if there is none.

        Raises:
            OSError: the file cannot be read.
        """
        return Path(self.password_file).read_text().strip() if self.password_file else ""

    def conninfo(self) -> str:
        """Return libpq's connection string, with the password."""
        secret = {"password": self.password()} if self.password_file else {}
        return psycopg.conninfo.make_conninfo(
            "", host=self.host, port=self.port, dbname=self.name, user=self.user, **secret
        )


class HubSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The hub as the control plane reaches it, and as nodes' leaves reach it."""

    url: str
    leaf_url: str
    leaf_certificates: bool = False
    """Let in only leaves that show a certificate of ours that belongs to their token. The hub must be set up so too.

    False is for a hub whose leaves were enrolled before there were certificates.
    """
    certificate_hours: Annotated[float, Meta(gt=0, le=24 * 90)] = 7 * 24
    """How long a leaf's certificate holds. Nodes renew it when a third of that is left."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings. `keys_folder` holds operator.nk, master.key, root.nk and signing.nk."""

    api: ApiSettings = ApiSettings()
    database: DatabaseSettings
    hub: HubSettings
    keys_folder: str
    operator_key_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
    """SHA-256 of the vendor operator's key, in hex."""
    log_level: LogLevel = "info"


def read(file: Path) -> Settings:
    """Read the settings.

    Raises:
        OSError: the file cannot be read.
        msgspec.ValidationError: it has not the form of `Settings`; the text names the field.
    """
    return msgspec.json.decode(file.read_bytes(), type=Settings)
