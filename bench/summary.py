"""What a benchmark found, as lines that a program can read: one JSON object a figure.

In flow the figures of single runs, from every benchmark's `report`; out flow lines appended to the file that the variable
BENCH_SUMMARY names. Nothing is written without it. `bench.all` sets it and prints the lines at its end.
"""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "BENCH_SUMMARY"


def tell(name: str, runs: Sequence[float], *, least: float | None = None, most: float | None = None) -> None:
    """Write down a figure: its median, and its smallest and largest run. `least` or `most` is what is aimed at."""
    path = os.environ.get(VARIABLE)
    if not path or not runs:
        return
    median = statistics.median(runs)
    line: dict[str, object] = {
        "name": name,
        "median": round(median, 4),
        "runs": len(runs),
        "min": round(min(runs), 4),
        "max": round(max(runs), 4),
    }
    if least is not None:
        line |= {"aim": f">= {least:g}", "met": median >= least}
    if most is not None:
        line |= {"aim": f"<= {most:g}", "met": median <= most}
    with Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")
