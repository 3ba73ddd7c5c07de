"""The subcommands of `fleet`, and how every error ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from deploy.commands import (
    compare,
    conformance,
    doctor,
    evaluate,
    explain,
    export,
    hash,
    ledger,
    logs,
    replay,
    status,
    steer,
    steps,
    sweep,
    train,
    up,
    worker,
)
from deploy.commands import keys as key_commands
from deploy.exits import Exit, complain
from deploy.help import PlainCommand
from protocol import VERSION
from protocol.errors import FleetError, UserError

_LEARNER_MODULES = ("matplotlib", "rich", "safetensors", "tensorboard", "torch")
_EXTRAS = {**dict.fromkeys(_LEARNER_MODULES, "learner"), "optuna": "sweep"}
"""What to install for a module that is missing."""

app = typer.Typer(
    name="fleet",
    help="A fleet of rollout workers plays CAGE Challenge 2; one learner trains PPO from their episodes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    train.train,
    train.learner,
    compare.compare,
    sweep.sweep,
    worker.worker,
    up.up,
    up.scale,
    up.down,
    status.status,
    steer.pause,
    steer.resume,
    steer.drain,
    logs.logs,
    doctor.doctor,
    evaluate.evaluate,
    explain.explain,
    export.export,
    replay.replay,
    ledger.ledger,
    steps.steps,
    conformance.conformance,
    hash.hash_checkpoint,
):
    brief = (command.__doc__ or "").split("\n")[0].replace("`", "")
    app.command(name=command.__name__.split("_")[0], cls=PlainCommand, short_help=brief)(command)


app.add_typer(key_commands.app, short_help=key_commands.app.info.help)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rollout-fleet {VERSION}")
        raise typer.Exit


@app.callback()
def fleet(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Hold the options of `fleet` itself."""


def run_command(arguments: Sequence[str] | None = None) -> Exit:
    """Run the command, None for this process's own; return its status. A mistake is one line on stderr."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # both are read when torch and numpy are imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        told = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
        return Exit(app(args=told, prog_name="fleet", standalone_mode=False) or Exit.OK)
    except UserError as error:
        return complain(str(error), Exit.USAGE)
    except FleetError as error:
        return complain(str(error), Exit.FAILED)
    except TyperException as error:
        return complain(error.format_message(), Exit.USAGE)
    except (Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
            mend = f"in a clone, pip install --editable '.[{_EXTRAS[error.name]}]'"
            return complain(f"this command needs {error.name}: {mend}", Exit.USAGE)
        return complain(_unexpected(error), Exit.FAILED)


def _unexpected(error: Exception) -> str:
    """Keep the traceback where `train` says it is, else print it here, and return the line that follows."""
    notes = getattr(error, "__notes__", [])
    if not notes:
        traceback.print_exception(error)
    where = notes[0] if notes else "the traceback is above"
    return f"unexpected {type(error).__name__}: {error}; this is a bug, {where}"
