"""`fleet conformance`: the embedded simulator against recorded steps of the real CybORG."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.exits import Exit
from deploy.json_file import JsonFile, write_json
from protocol.errors import UserError


def conformance(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE.npz", help="Recorded steps.")],
    json_file: JsonFile = None,
) -> Exit:
    """Force the embedded CAGE-2 through recorded outcomes and print the first mismatch of each file."""
    from rollout_worker.environments.cage2.conformance import check_trace

    reports: list[dict[str, Any]] = []
    for trace in traces:
        try:
            report = check_trace(trace)
        except ValueError as error:
            raise UserError(str(error)) from error
        typer.echo(str(report))
        reports.append({**asdict(report), "file": str(trace)})
    write_json(json_file, {"traces": reports})
    return Exit.FAILED if any(report["mismatched_episodes"] for report in reports) else Exit.OK
