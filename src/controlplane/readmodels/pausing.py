"""What a pause costs at the source, in words: made from the numbers that a node measured last. Pure.

Called by the API when somebody pauses a pipeline.
"""

from collections.abc import Mapping
from typing import Any

from contracts.diagnosis import duration_text, size_text

RATE_MIN = 1.0
"""Bytes a second; a source that writes less is as good as quiet."""
NO_LIMIT = (
    "Nothing limits what it keeps: set `source.log` in the pipeline, or max_slot_wal_keep_size at the source, or its disk"
    " may fill up."
)


def cost_of(status: Mapping[str, Any] | None) -> list[str]:
    """Return what is known of the slot that a paused pipeline leaves; nothing before it was ever measured."""
    slot = ((status or {}).get("telemetry") or {}).get("slot")
    if not slot:
        return []
    retained, limit = slot.get("retained_bytes", 0), slot.get("limit_bytes")
    rate = slot.get("written_bytes_per_second", 0.0)
    now = f"It keeps {size_text(retained)} now"
    if rate < RATE_MIN:
        return [f"{now}, and writes next to nothing at the moment.", *([] if limit is not None else [NO_LIMIT])]
    now += f", and grows by about {size_text(round(rate * 3600))} an hour at the rate of the last minutes"
    if limit is None:
        return [f"{now}.", NO_LIMIT]
    left = duration_text(max(0, limit - retained) / rate)
    return [f"{now}: its limit of {size_text(limit)} is reached in about {left}."]
