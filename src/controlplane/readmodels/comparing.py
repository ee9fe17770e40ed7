"""What stands in the way of comparing a pipeline's two ends, in words: made from how the pipeline stands. Pure.

Called by the API when somebody asks for a comparison.
"""

from collections.abc import Mapping
from typing import Any

from contracts.v2 import Phase

NOT_OUT_OF_A_GAP = (
    "The pipeline is in a gap, so nothing is brought to the destination: a comparison ends with reconcile_behind, and a repair does"
    " not close the gap. Copy all tables again with `pointsman resync pipeline NAME`, and compare then."
)


def hindrance_of(status: Mapping[str, Any] | None) -> list[str]:
    """Return why a comparison will not come to its end as the pipeline stands."""
    return [NOT_OUT_OF_A_GAP] if (status or {}).get("phase") == Phase.GAP.value else []
