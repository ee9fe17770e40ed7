"""The one write path: whoever wants to change something comes through here, and leaves as an event or with a refusal."""

from controlplane.commands.write_path import Outcome, WriteOptions, WritePath

__all__ = ["Outcome", "WriteOptions", "WritePath"]
