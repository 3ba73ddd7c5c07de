"""`fleet status`: what a learner at work, its pools and its workers do, and what the run waits for."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Annotated

import typer

from deploy.access import KeyFile
from deploy.exits import Exit, complain
from deploy.json_file import JsonFile, write_json
from deploy.live import find_learner
from protocol.errors import UserError

_WATCH_SECONDS = 2.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


def status(
    learner: Annotated[
        str,
        typer.Argument(metavar="[RUN|HOST:PORT]", help="Which learner; without it, the only one at work."),
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every worker, however many there are.")] = False,
    pool: Annotated[str, typer.Option("--pool", metavar="POOL", help="Show this pool only.")] = "",
    key: KeyFile = None,
    json_file: JsonFile = None,
) -> Exit:
    """Show the learner, what it waits for, its pools and its workers.

    Of more than 40 workers only the odd ones have a line: slow, silent, stale, big or with an error. CPU is
    in percent of one core; rates are those of the last seconds.
    """
    while True:
        try:  # each time anew: a learner that is restarted may listen elsewhere
            _show(find_learner(learner), key, pool=pool, every=every, clear=watch, json_file=json_file)
        except UserError as error:
            if not watch:
                raise
            complain(str(error))
        if not watch:
            return Exit.OK
        time.sleep(_WATCH_SECONDS)


def _show(address: str, key: KeyFile, *, pool: str, every: bool, clear: bool, json_file: JsonFile) -> None:
    from deploy.query import ask
    from deploy.status_view import picture

    report = ask(address, "status", key)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 10_000
    lines = picture(report, pool=pool, every=every, width=width, colours=terminal)
    typer.echo((_HOME_AND_CLEAR if clear and terminal else "") + "\n".join(lines))
    write_json(json_file, report)
