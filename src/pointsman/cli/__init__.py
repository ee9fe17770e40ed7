"""The command line: `pointsman VERB KIND [NAME]`, in kubectl's grammar. One file a group of verbs; `root` puts them together.

`main` is what the installed program calls. It turns every problem into one form on standard error and an exit code.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with `arguments` (the process's own) and leave the process with its exit code."""
    from pointsman.cli.root import run

    raise SystemExit(run(arguments))
