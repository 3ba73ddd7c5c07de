"""Runs and checkpoints by name or folder."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from deploy.storage import MARKS, Kind, storage_told
from protocol.errors import UserError

RUNS = Path("runs")
PRETRAINED = "pretrained:"
"""Begins what names a policy that comes with this release."""
_LONGEST_NAME = 100
_COMMANDS: Mapping[Kind, str] = {"training": "fleet train", "sweep": "fleet sweep"}
OUTCOME, FINISHED = "outcome", "finished"
"""File of a run's folder, and what stands in it once it is complete, with the number of its updates."""


def find_run(text: str) -> Path:
    """Return the folder of a run given by name or path. Raises UserError, with near names."""
    if text.startswith(PRETRAINED):
        raise UserError(
            f"{text} is an actor alone, without critic, optimiser and ledger: fleet evaluate, explain and "
            "export take it, but this needs a run or a checkpoint"
        )
    return _find(text, "training", "run or checkpoint")


def find_sweep(text: str) -> Path:
    """Return the folder of a sweep given by name or path. Raises UserError, with near names."""
    return _find(text, "sweep", "sweep")


def _find(text: str, wanted: Kind, called: str) -> Path:
    found = {folder: kind for folder in (Path(text), RUNS / text) if (kind := _kind(folder))}
    for folder, kind in found.items():
        if kind == wanted:
            return folder
    for folder, kind in found.items():
        goes_on = f"{_COMMANDS[kind]} --resume {text} goes on with it"
        raise UserError(f"{folder} is a {kind}, not a {wanted}: {goes_on}")
    known = sorted(file.parent.name for file in RUNS.glob(f"*/{MARKS[wanted]}"))
    near = get_close_matches(Path(text).name, known, n=3) or known[-3:]
    more = f" and {len(known) - len(near):,} more" if len(known) > len(near) else ""
    are = "is" if len(known) == 1 else "are"
    mend = f"there {are} {', '.join(near)}{more}" if near else f"there are none under {RUNS}/"
    raise UserError(f"no {called} {text!r}: give a name or a folder; {mend}")


def _kind(folder: Path) -> Kind | None:
    """Return what a folder holds."""
    for kind, mark in MARKS.items():
        if os.path.isfile(folder / mark):  # False for a name that is too long for a file
            return kind
    return None


def new_run(name: str, environment: str, kind: Kind = "training") -> Path:
    """Return the folder of a run to begin; an empty name makes one. Raises UserError if it is taken."""
    if not name:
        stem = re.sub(r"[^\w.-]+", "-", environment).lower()
        return RUNS / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_name(name)
    folder = RUNS / name
    with storage_told(folder):
        if folder.exists() and not (folder.is_dir() and _unbegun(folder)):
            goes_on = ""
            if found := _kind(folder):
                command = "" if found == kind else f"it is a {found}, and {_COMMANDS[found]} "
                goes_on = f"{command}--resume {name} goes on with it, "
            raise UserError(f"{folder} exists already: {goes_on}another --name begins anew")
    return folder


def check_name(name: str) -> None:
    """Raise UserError where a run cannot have this name."""
    if len(name) > _LONGEST_NAME:
        raise UserError(f"--name {name[:20]}... is too long for a folder: {_LONGEST_NAME} letters at most")
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise UserError(f"--name {name!r} cannot be a folder's: use letters, digits, and _ - . between them")


def _unbegun(folder: Path) -> bool:
    """Say whether a folder is empty, or left by a start that was killed before it wrote config.toml."""
    names = {path.name for path in folder.iterdir()}
    return "config.toml" not in names and ("lock" in names or names <= {"logs", "fleet"})


def find_checkpoint(text: str) -> Path:
    """Return a folder that `learner.checkpoints.load` takes: a checkpoint's, or a run's for its newest."""
    return Path(text) if os.path.isdir(text) else find_run(text)


def best_checkpoint(text: str) -> Path:
    """Return the folder of a checkpoint, of a run the best by its evaluations, the newest without any."""
    from learner.selection import best_version

    folder = find_checkpoint(text).resolve()
    newest = max((folder / "checkpoints").glob("update-*"), default=folder)
    best = newest if (version := best_version(folder)) is None else newest.with_name(f"update-{version:05d}")
    return best if best.is_dir() else newest
