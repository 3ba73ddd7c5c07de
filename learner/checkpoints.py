"""Checkpoints: all that a run needs to go on after any crash, one folder for each.

runs/<name>/checkpoints/update-00250/
    arrays.safetensors   weights, optimiser, normalisation; policy versions still needed, as versions/N/...
    state.json           all else, with hashes of both files that expose damage

Nothing in it can execute. A checkpoint appears whole, under its name, or not at all; while one is written
again, the older one may for a moment lie under its aside name, .update-00250.old.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from learner.descriptors import with_room
from learner.run_folder import bring_to_disk
from protocol.errors import UserError
from protocol.ranges import IntervalSet

logger = logging.getLogger(__name__)

_FORMAT, _FORMAT_VERSION = "rollout-fleet checkpoint", 1
_ARRAYS, _STATE = "arrays.safetensors", "state.json"
_VERSIONS = "versions/"
_MEND = ": use another checkpoint"
_NAME = re.compile(r"\.?update-(\d+)(\.old)?")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run at the boundary after `update` updates; `ledger` and `state` are plain JSON."""

    update: int
    arrays: Mapping[str, NDArray[Any]]
    """Of `Trainer.state`."""
    ledger: Mapping[str, Any]
    """Of `Ledger.to_plain`, at the same boundary."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Lineage, configuration, environment, policy, probe: whatever else a start from here needs."""
    versions: Mapping[int, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    """Policy arrays by version, of those that tickets may still ask for."""


def checkpoint_folder(checkpoints: Path, update: int) -> Path:
    """Return where the checkpoint of an update lies in a run's folder `checkpoints`."""
    return checkpoints / f"update-{update:05d}"


def content_hash(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 that two trainings share exactly if they are the same to the bit.

    It covers weights, optimiser state, normalisation statistics, update number and consumed train tickets,
    and nothing else: not the incarnation, the configuration, evaluations or the time. Raises UserError where
    the ledger is none.
    """
    digest = hashlib.sha256()
    for name, array in sorted(checkpoint.arrays.items()):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    try:
        consumed = IntervalSet(checkpoint.ledger["train"]["consumed"]).to_ranges()
    except (KeyError, TypeError, ValueError):
        raise UserError(
            "the checkpoint is damaged or foreign: its ledger tells no consumed tickets"
        ) from None
    digest.update(json.dumps({"update": checkpoint.update, "consumed": consumed}, sort_keys=True).encode())
    return digest.hexdigest()


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to the folder `path` and bring it to the disk; an older one there is replaced."""
    arrays = dict(checkpoint.arrays)
    for version, policy in checkpoint.versions.items():
        arrays |= {f"{_VERSIONS}{version}/{name}": array for name, array in policy.items()}
    data = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    state = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "update": checkpoint.update,
        "arrays_sha256": hashlib.sha256(data).hexdigest(),
        "ledger": checkpoint.ledger,
        "state": checkpoint.state,
    }
    state["state_sha256"] = _hash_json(state)

    draft = path.with_name(f".{path.name}.draft")
    _clear(draft)
    draft.mkdir(parents=True)
    try:
        _write(draft / _ARRAYS, data)
        _write(draft / _STATE, json.dumps(state, indent=1).encode())
        bring_to_disk(draft)
    except OSError:  # the disk is full: leave it what the journal needs
        _clear(draft)
        raise
    aside = _aside(path)
    if path.exists():
        _clear(aside)
        path.rename(aside)
    draft.rename(path)
    bring_to_disk(path.parent)
    _clear(aside)


def any_in(run: Path) -> bool:
    """Say whether a run's folder holds a checkpoint, be it sound or damaged."""
    return bool(_folders(run / "checkpoints"))


def newest_update(run: Path) -> int:
    """Return the update of the newest checkpoint in a run's folder, sound or damaged; 0 without any."""
    numbers = (_NAME.fullmatch(folder.name) for folder in _folders(run / "checkpoints"))
    return max((int(number[1]) for number in numbers if number), default=0)


def load(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder, or the newest sound one of a run's folder.

    Raises UserError, in one line, where there is none or where it is damaged or foreign.
    """
    folders = _folders(path / "checkpoints")
    if not folders:
        return _load(path)
    for folder in folders:
        try:
            return _load(folder)
        except UserError as error:
            logger.warning("%s; the one before it is tried", str(error).removesuffix(_MEND))
    raise UserError(f"all checkpoints in {path / 'checkpoints'} are damaged: begin a new run")


def prune(checkpoints: Path, keep: int, update: int, also: Collection[int] = ()) -> None:
    """Keep the checkpoint of `update`, just written, the newest before it, `keep` in all, and those `also`.

    Those past it go as well: the run went on from before them, because they are damaged or it was told to. So
    does what a killed process left half-written.
    """
    for leftover in with_room(lambda: list(checkpoints.glob(".update-*"))):
        path = checkpoints / leftover.stem.removeprefix(".")
        if leftover == _aside(path) and not path.exists():
            leftover.rename(path)
        else:
            _clear(leftover)
    folders = _folders(checkpoints)
    kept = folders[folders.index(checkpoint_folder(checkpoints, update)) :][:keep]
    kept += [checkpoint_folder(checkpoints, number) for number in also if number <= update]
    for folder in folders:
        if folder not in kept:
            _remove(folder)


def _load(folder: Path) -> Checkpoint:
    if not (folder / _STATE).is_file():
        raise UserError(f"{folder} holds no checkpoint (no {_STATE}): name a run or one of its checkpoints")
    try:
        state = json.loads(with_room((folder / _STATE).read_bytes))
        whole = state.pop("state_sha256") == _hash_json(state)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(_damaged(folder / _STATE, "is no state of a checkpoint")) from None
    if state.get("format") != _FORMAT or state.get("format_version") != _FORMAT_VERSION:
        theirs = f"{state.get('format')!r} version {state.get('format_version')}"
        raise UserError(
            f"{folder / _STATE} is {theirs}, this program reads {_FORMAT!r} version {_FORMAT_VERSION}: "
            "use the release that wrote it"
        )
    if not whole:
        raise UserError(_damaged(folder / _STATE, "does not match its own hash"))
    try:
        data = with_room((folder / _ARRAYS).read_bytes)
    except OSError as error:
        raise UserError(_damaged(folder / _ARRAYS, error.strerror or "cannot be read")) from None
    if hashlib.sha256(data).hexdigest() != state["arrays_sha256"]:
        raise UserError(_damaged(folder / _ARRAYS, f"does not match the hash in {_STATE}"))

    arrays: dict[str, NDArray[Any]] = {}
    versions: dict[int, dict[str, NDArray[Any]]] = {}
    try:
        for name, array in safetensors.numpy.load(data).items():
            if name.startswith(_VERSIONS):
                _, version, name = name.split("/", 2)
                versions.setdefault(int(version), {})[name] = array
            else:
                arrays[name] = array
        ledger, plain, update = dict(state["ledger"]), dict(state["state"]), int(state["update"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        what = f"is not what this program writes ({type(error).__name__}: {error})"
        raise UserError(_damaged(folder, what)) from None
    return Checkpoint(update, arrays, ledger, plain, versions)


def _folders(checkpoints: Path) -> list[Path]:
    """Return the folders of all checkpoints, the newest first, one that lies aside after its successor."""
    found = with_room(lambda: list(checkpoints.glob("*update-*")))
    names = {folder: _NAME.fullmatch(folder.name) for folder in found}
    ranks = {folder: (int(name[1]), folder.name) for folder, name in names.items() if name}
    return sorted(ranks, key=ranks.__getitem__, reverse=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _damaged(file: Path, what: str) -> str:
    return f"{file} {what}, so the checkpoint is damaged or foreign{_MEND}"


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _clear(folder: Path) -> None:
    with_room(lambda: shutil.rmtree(folder, ignore_errors=True))


def _write(path: Path, data: bytes) -> None:
    with with_room(lambda: path.open("wb")) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    """Remove a checkpoint so that a crash leaves none of its name that is half there."""
    removed = folder.with_name(f".{folder.name}.removed")
    _clear(removed)
    folder.rename(removed)
    with_room(lambda: shutil.rmtree(removed))
