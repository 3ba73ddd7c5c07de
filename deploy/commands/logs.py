"""`fleet logs`: the end of a worker's log, over the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from deploy.access import KeyFile
from deploy.exits import Exit, complain
from deploy.live import LearnerOption, find_learner, labels_at
from deploy.settings import number
from learner.config import Range
from protocol.errors import UserError

_PATIENCE_SECONDS = 6.0
"""The learner waits for its workers before it answers."""


def logs(
    targets: Annotated[
        list[str], typer.Argument(metavar="WORKER|HOST|POOL...", help="Labels, host:pid, hosts or pools.")
    ],
    lines: Annotated[
        str, typer.Option("--lines", metavar="N", help="Last lines of each, 1000 at most.")
    ] = "20",
    learner: LearnerOption = "",
    key: KeyFile = None,
) -> Exit:
    """Print the end of the logs of workers, wherever they are.

    A live one is asked through the learner; of one that does not answer or is gone, its fleet's engine is.
    """
    wanted = number(int, "--lines", lines, Range(1, 1000))
    report = _ask(learner, key, wanted, targets)
    status = Exit.OK
    for log in report["logs"]:
        name = log["worker"].partition(" (")[0]
        texts = log["lines"]
        if texts is None and (kept := log_of_gone(learner, name, wanted)) is not None:
            texts = kept.splitlines()
        if texts is None:
            status = complain(f"{log['worker']} does not answer: its log is on its host, or with its engine")
            continue
        if len(report["logs"]) > 1:
            typer.secho(f"{log['worker']}:", bold=True)
        for text in texts:
            typer.echo(text)
    for name in report["unknown"]:
        gone = log_of_gone(learner, name, wanted)
        if gone is None:
            status = complain(f"no live worker, host or pool is called {name}: {report['mend']}")
        else:
            typer.echo(gone)
    if rest := report["not_asked"]:
        status = complain(f"{len(rest):,} more were not asked: name fewer, such as {rest[0]}")
    return status


def _ask(learner: str, key: KeyFile, lines: int, targets: list[str]) -> Mapping[str, Any]:
    """Return the learner's report; without a learner, one in which all are unknown."""
    from deploy.query import Line, NoAnswer
    from protocol.messages import LogRequest

    try:
        with Line(find_learner(learner), key) as line:
            targets = labels_at(line.address, targets)
            report = line.ask(LogRequest(lines, tuple(targets)), _PATIENCE_SECONDS)
        return {**report, "mend": "fleet status names them"}
    except NoAnswer as error:
        return {"logs": [], "unknown": targets, "not_asked": [], "mend": str(error)}


def log_of_gone(run: str, name: str, lines: int) -> str | None:
    """Return the end of the log of a worker that lives no more, as its engine keeps it; None if none does."""
    from deploy.fleet.pool_engine import fleet_name, pool_engine
    from deploy.fleet.state import find_fleet

    try:
        folder = find_fleet(run or None)
        desired = folder.desired()
        pool = name.rpartition("-")[0]
        if desired is None or pool not in desired.pools:
            return None
        fleet = fleet_name(folder.run, desired)
        engine = pool_engine(fleet, folder.run, pool, desired.pools[pool])
        try:
            return engine.log(name, lines) or None
        finally:
            engine.close()
    except UserError:
        return None
