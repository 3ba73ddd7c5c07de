"""`fleet export`: a policy as a Blue agent of the challenge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run for its best, pretrained:NAME."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to put it: new, or empty.")],
) -> None:
    """Write a policy as a Blue agent that the CAGE Challenge 2 plays with numpy alone."""
    from deploy.export import export as write
    from deploy.pretrained import resolve

    write(resolve(checkpoint), folder, Path(checkpoint).name)
    typer.echo(f"{folder}: an agent for the challenge's evaluation.py; its README.md says how")
