"""`rotate` and `retire`: the vendor's side gets new keys while pipelines run.

Two steps, because whoever knows the old key must hear of the new one first: `rotate` makes the new one and goes on trusting
the old, `retire` ends that. In a folder of `up` what has to read the keys again is restarted; elsewhere it is named.
"""

from pathlib import Path

import click

from pointsman.cli import render
from pointsman.cli.output import output_option
from pointsman.cli.render import Format
from pointsman.cli.target import folder_option
from pointsman.problems import CODES, Exit, Problem

KINDS = ("ca", "signing")

_keys = click.option("--keys", metavar="FOLDER", help="The control plane's keys folder, if it is none of `up`.")


@click.command("rotate")
@click.argument("kind", type=click.Choice(KINDS))
@_keys
@folder_option
@output_option
def rotate(kind: str, keys: str | None, folder: Path, output: Format) -> None:
    """Make a new key of the control plane: of the authority that signs certificates, or the one that signs documents.

    What the old one has signed stays good until `retire`. Rows flow on, changes of configuration after a moment.
    """
    _turn(kind, keys, folder, output, retires=False)


@click.command("retire")
@click.argument("kind", type=click.Choice(KINDS))
@_keys
@folder_option
@output_option
def retire(kind: str, keys: str | None, folder: Path, output: Format) -> None:
    """Trust the old key no more, after `rotate` and after every node has linked since."""
    _turn(kind, keys, folder, output, retires=True)


def _turn(kind: str, keys: str | None, folder: Path, output: Format, *, retires: bool) -> None:
    from pointsman.local import rotating
    from pointsman.local.layout import Layout

    try:
        if keys is not None:
            restarted, to_restart = [], rotating.turn(Path(keys), kind, retires=retires)
        else:
            restarted, to_restart = rotating.turn_in_folder(Layout(folder.resolve()), kind, retires=retires), []
    except ValueError as refused:
        raise Problem(
            "rotation_refused", f"{refused}".capitalize(), hint=CODES["rotation_refused"][1], exit_code=Exit.CONFLICT
        ) from None
    except FileNotFoundError as missing:
        raise Problem(
            "rotation_refused",
            f"There is no {missing.filename}.",
            hint="Give the folder of `up` with --dir, or the keys folder with --keys.",
            exit_code=Exit.NOT_FOUND,
        ) from None
    verb = "retired" if retires else "rotated"
    item = {"kind": kind, "done": verb, "restarted": restarted, "to_restart": to_restart}
    words = f"{kind} {verb}" + (f"; restarted {', '.join(restarted)}" if restarted else "")
    render.print_one(item, output, text=lambda _: words)
    if to_restart:
        render.say(f"run prepare.py again, then restart, in this order: {', '.join(to_restart)}")
