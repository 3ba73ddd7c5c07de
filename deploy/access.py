"""The option `--key` of commands that ask a learner: the key file of a worker or an operator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from deploy.config import LaunchConfig
from deploy.live import run_at
from protocol.errors import UserError
from protocol.keys import Keyring, PeerKey

KEY_VARIABLE = "FLEET_KEY"

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key", envvar=KEY_VARIABLE, metavar="FILE", help="Key file, where the learner asks for one."
    ),
]


def keyring_of(launch: LaunchConfig) -> Keyring | None:
    """Return whose keys a learner lets in; None where it speaks in the clear. Raises UserError."""
    if launch.keys and launch.insecure:
        raise UserError("--keys and --insecure contradict each other: leave one of them out")
    if launch.keys:
        return Keyring(Path(launch.keys).expanduser())
    from protocol.addresses import is_loopback, resolve

    usual = Keyring()
    return usual if usual.in_use and not launch.insecure and not is_loopback(resolve(launch.bind)) else None


def read_key(file: Path | None, address: str = "") -> PeerKey | None:
    """Return the key of this file, else of the one that FLEET_KEY names, else None. Raises UserError.

    For the `address` of a run of this folder it is the one that the run's learner left for its own user.
    """
    told = file or os.environ.get(KEY_VARIABLE)
    if not told and address:
        run = run_at(address)
        told = run / "operator.key" if run and (run / "operator.key").exists() else None
    return PeerKey.read(Path(told)) if told else None
