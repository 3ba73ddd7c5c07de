"""`fleet worker`: one rollout worker, told nothing but where its learner is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from deploy.settings import number
from learner.config import COUNT, Range


def worker(
    learner: Annotated[
        str,
        typer.Option(
            "--learner",
            metavar="HOST:PORT",
            help="Where the learner listens; several, with commas between them, are tried in turn.",
        ),
    ],
    slots: Annotated[
        str, typer.Option("--slots", metavar="N", help="Environments played side by side.")
    ] = "50",
    give_up_after: Annotated[
        str, typer.Option("--give-up-after", metavar="SECONDS", help="End without a learner for this long.")
    ] = "600",
    ports: Annotated[
        str | None,
        typer.Option(
            "--ports", metavar="N,N,N,N", help="All four ports through a tunnel, such as 5555,6001,6002,6003."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", envvar="FLEET_KEY", metavar="FILE", help="Key file, where the learner asks for one."
        ),
    ] = None,
    allow_env: Annotated[
        list[str] | None,
        typer.Option("--allow-env", metavar="MODULE", help="Import a module that registers environments."),
    ] = None,
    max_failures: Annotated[
        str, typer.Option("--max-failures", metavar="N", help="End after this many failed tickets in a row.")
    ] = "5",
    pool: Annotated[
        str, typer.Option("--pool", metavar="POOL", help="Pool that this worker is counted to.")
    ] = "",
    label: Annotated[
        str, typer.Option("--label", metavar="NAME", help="Name of this worker, for its operator.")
    ] = "",
    drain_on_term: Annotated[
        str, typer.Option("--drain-on-term", metavar="SECONDS", help="Finish episodes at SIGTERM, so long.")
    ] = "0",
    log_file: Annotated[Path | None, typer.Option("--log-file", metavar="FILE", help="Log here too.")] = None,
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = "info",
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", help="Note each episode played and pushed here."),
    ] = None,
) -> NoReturn:
    """Play episodes for a learner; start as many as you like, before or after it, on any host."""
    given = {
        "--learner": learner,
        "--slots": number(int, "--slots", slots, Range(1, 10**6)),
        "--give-up-after": number(float, "--give-up-after", give_up_after, Range(0, above=True)),
        "--ports": ports,
        "--key": key,
        "--max-failures": number(int, "--max-failures", max_failures, COUNT),
        "--pool": pool or None,
        "--label": label or None,
        "--drain-on-term": number(float, "--drain-on-term", drain_on_term, Range(0)),
        "--log-file": log_file,
        "--log-level": log_level,
        "--journal": journal,
    }
    arguments = [text for flag, value in given.items() if value is not None for text in (flag, str(value))]
    arguments += [text for module in allow_env or [] for text in ("--allow-env", module)]
    # A fresh program holds nothing that a worker does not need. -P: it is not looked for in this folder.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "rollout_worker", *arguments])
