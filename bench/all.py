"""Every benchmark in order, with the settings that bench/README.md shows, and one summary that a program can read.

    uv run python -m bench.all [--out FILE] [--resume] [--only NAME …] [--without NAME …] [--short]

Run it with nothing else on the machine: about 40 minutes, of which Debezium takes 10. What each printed is appended to
FILE as soon as it ends, under the command that repeats it; its figures go to the file beside it, which ends in `.jsonl`:
name, median, runs, min, max, and the aim where there is one. All figures are printed at the end. It may be interrupted
at any time: with `--resume` those that had ended well are not run again. `--short` only shows that each of them works.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from bench.summary import VARIABLE

COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "capture": (["bench.capture", "--rows", "600000"], ["--rows", "20000", "--runs", "1"]),
    "capture-small": (
        ["bench.capture", "--shape", "small", "--rows", "200000"],
        ["--rows", "5000", "--runs", "1"],
    ),
    "capture-wide": (["bench.capture", "--shape", "wide", "--rows", "60000"], ["--rows", "5000", "--runs", "1"]),
    "capture-large": (["bench.capture", "--shape", "large", "--rows", "4000"], ["--rows", "200", "--runs", "1"]),
    "capture-single": (
        ["bench.capture", "--shape", "single", "--rows", "1000000"],
        ["--rows", "20000", "--runs", "1"],
    ),
    "apply": (["bench.apply"], ["--rows", "4000", "--runs", "1"]),
    "apply-thresholds": (["bench.apply", "--thresholds", "--runs", "3"], ["--runs", "1"]),
    "lanes": (["bench.lanes", "--rows", "60000"], ["--rows", "5000", "--runs", "1"]),
    "pipeline": (["bench.pipeline", "--rows", "300000"], ["--rows", "5000", "--runs", "1"]),
    "latency": (["bench.latency", "--seconds", "4"], ["--seconds", "1", "--runs", "1"]),
    "memory": (["bench.memory"], ["--rows", "20000"]),
    "change": (["bench.change", "--changes", "20"], ["--changes", "2"]),
    "snapshot": (["bench.snapshot", "--rows", "1000000"], ["--rows", "20000", "--runs", "1"]),
    "reconcile": (["bench.reconcile", "--rows", "200000"], ["--rows", "5000", "--runs", "1"]),
    "audit": (["bench.audit"], ["--entries", "2000", "--runs", "1"]),
    "kafka": (["bench.kafka", "--rows", "200000", "--runs", "3"], ["--rows", "20000", "--runs", "1"]),
    "takeover": (["bench.takeover", "--runs", "5"], ["--runs", "1"]),
    "debezium": (["bench.debezium", "--extra"], ["--into", "discard", "--rows", "50000", "--runs", "1"]),
}
"""The arguments that give README's figures, and what is put behind them for a short run."""
SECONDS_MAX = 2_400.0
STOP_SECONDS_MAX = 60.0


def run(name: str, out: Path, *, short: bool) -> bool:
    """Run one and append what it printed and what it found; return whether it ended well."""
    full, shorter = COMMANDS[name]
    arguments = [*full, *shorter] if short else full
    started, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as figures:
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {VARIABLE: figures.name},
            process_group=0,  # what ends this one comes to it through `end` alone
        )
        try:
            printed, _ = child.communicate(timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired:
            printed = end(child)
        except KeyboardInterrupt:
            end(child)
            raise
        ended = child.returncode
        found = figures.read()
    seconds = time.monotonic() - started
    state = "" if ended == 0 else f", ended with {ended}"
    with out.open("a") as file:
        file.write(f"\n## {name}\n\n`uv run python -m {' '.join(arguments)}`: {seconds:.0f} s, load before {load:.1f}")
        file.write(f"{state}\n\n{printed.strip()}\n")
    if ended == 0:
        # All figures of a benchmark and its end come in one write: it counts whole, or is run again.
        with summary_of(out).open("a") as file:
            file.write(found + json.dumps({"bench": name, "seconds": round(seconds), "load_before": load}) + "\n")
    print(f"{name}: {seconds:.0f} s{state}", flush=True)
    return ended == 0


def end(child: subprocess.Popen[str]) -> str:
    """Interrupt a benchmark, and let it stop the servers that it started. Return what it printed."""
    child.send_signal(signal.SIGINT)
    try:
        return child.communicate(timeout=STOP_SECONDS_MAX)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        return child.communicate()[0]


def summary_of(out: Path) -> Path:
    """Return the file of figures that belongs to the printed one."""
    return out.with_suffix(".jsonl")


def ended_before(out: Path) -> set[str]:
    """Return the names of those whose figures are there."""
    path = summary_of(out)
    lines = path.read_text().splitlines() if path.exists() else []
    return {str(line["bench"]) for line in map(json.loads, lines) if "bench" in line}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-results.md"))
    parser.add_argument("--resume", action="store_true", help="go on behind what FILE has already")
    parser.add_argument("--short", action="store_true", help="few rows, one run of each: no figure of it counts")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--without", nargs="+", choices=list(COMMANDS), default=[])
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not options.resume or not options.out.exists():
        memory = psutil.virtual_memory().total / (1 << 30)
        options.out.write_text(
            f"# Benchmarks, {time.strftime('%Y-%m-%d %H:%M')}\n\n"
            f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
            f"Python {platform.python_version()}\n"
        )
        summary_of(options.out).write_text("")
    done = ended_before(options.out)
    names = [name for name in options.only if name not in options.without and name not in done]
    ended_well = [run(name, options.out, short=options.short) for name in names]
    print(summary_of(options.out).read_text(), end="")
    print(f"written to {options.out} and {summary_of(options.out)}", file=sys.stderr)
    if not all(ended_well):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
