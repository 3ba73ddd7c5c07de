"""`fleet hash`: whether two runs arrived at the same bits."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.runs import find_checkpoint


def hash_checkpoint(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder, or a run for its newest.")
    ],
) -> None:
    """Print a SHA-256 over weights, optimiser, normalisation, update number and consumed tickets."""
    from learner.checkpoints import content_hash, load

    typer.echo(content_hash(load(find_checkpoint(checkpoint))))
