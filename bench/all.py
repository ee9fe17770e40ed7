"""Every benchmark in order, with the settings that bench/README.md shows, into one file that its tables are made from.

    uv run python -m bench.all [--out FILE] [--only NAME …] [--without NAME …]

Run it with nothing else on the machine: about 25 minutes, of which Debezium takes 10. What each printed is appended to
the file as soon as it ends, under the command that repeats it, so what was measured stays when a later one fails.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil

COMMANDS: dict[str, list[str]] = {
    "capture": ["bench.capture"],
    "capture-small": ["bench.capture", "--shape", "small", "--rows", "300000"],
    "capture-wide": ["bench.capture", "--shape", "wide", "--rows", "100000"],
    "capture-large": ["bench.capture", "--shape", "large", "--rows", "4000"],
    "capture-single": ["bench.capture", "--shape", "single", "--rows", "1000000"],
    "apply": ["bench.apply"],
    "lanes": ["bench.lanes", "--rows", "60000"],
    "pipeline": ["bench.pipeline"],
    "latency": ["bench.latency", "--seconds", "4"],
    "memory": ["bench.memory"],
    "change": ["bench.change"],
    "takeover": ["bench.takeover"],
    "debezium": ["bench.debezium"],
}
SECONDS_MAX = 1_200.0


def run(name: str, out: Path) -> bool:
    """Run one and append what it printed; return whether it ended well."""
    command = [sys.executable, "-m", *COMMANDS[name]]
    started, load = time.monotonic(), os.getloadavg()[0]
    try:
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=SECONDS_MAX)
        printed, ended = child.stdout, child.returncode
    except subprocess.TimeoutExpired as late:
        printed, ended = (late.stdout or b"").decode(), -1
    seconds = time.monotonic() - started
    state = "" if ended == 0 else f", ended with {ended}"
    with out.open("a") as file:
        file.write(
            f"\n## {name}\n\n`uv run python -m {' '.join(COMMANDS[name])}`: {seconds:.0f} s, load before {load:.1f}"
        )
        file.write(f"{state}\n\n{printed.strip()}\n")
    print(f"{name}: {seconds:.0f} s{state}", flush=True)
    return ended == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-results.md"))
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--without", nargs="+", choices=list(COMMANDS), default=[])
    options = parser.parse_args()
    memory = psutil.virtual_memory().total / (1 << 30)
    options.out.write_text(
        f"# Benchmarks, {time.strftime('%Y-%m-%d %H:%M')}\n\n"
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}\n"
    )
    names = [name for name in options.only if name not in options.without]
    ended_well = [run(name, options.out) for name in names]
    print(f"written to {options.out}")
    if not all(ended_well):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
