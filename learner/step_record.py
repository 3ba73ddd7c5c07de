"""The record of every step of synchronous mode: when the action went out, when the answer came, from whom.

A file begins with a magic line. Then follow MessagePack arrays, one an order (a worker's share of a round),
so that a hundred slots take some hundred bytes a round:

    ["life", started]                                at each start of the learner; seconds since the epoch
    ["worker", place, name]                          before the first order of a worker in a life
    ["order", round, place, sent, answered, slots]   microseconds since the epoch; slots little-endian uint16
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgpack
import numpy as np
from numpy.typing import NDArray

from protocol.errors import UserError

logger = logging.getLogger(__name__)

_MAGIC = b"rollout-fleet steps 1\n"
_FLUSH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One order: the slots that one worker stepped in one round."""

    life: int
    """Counts the starts of the learner within the file, from 0; rounds begin anew with each."""
    round: int
    worker: str
    """As host:pid."""
    sent: float
    """Seconds since the epoch at which the actions went out."""
    answered: float
    slots: NDArray[np.int64]


class StepRecorder:
    """Writes a record; what is not a record already is never overwritten. Close it to bring all to the file.

    `go_on` appends to a record of the same name. Raises UserError where the file cannot be written. An error
    while writing, such as a full disk, ends the record and not the run.
    """

    def __init__(self, path: Path, go_on: bool) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        self._pack = msgpack.Packer().pack
        self._flushed_at = time.monotonic()
        self._epoch = time.time() - time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size and not _is_record(path):
                raise UserError(f"--record-steps {path} exists and is no record of steps: name another file")
            self._file: BinaryIO | None = path.open("ab" if go_on else "wb")
            if self._file.tell():
                self._file.truncate(_whole_bytes(path))
            else:
                self._file.write(_MAGIC)
            self._file.write(self._pack(["life", time.time()]))
            self._file.flush()
        except OSError as error:
            raise UserError(f"--record-steps {path} cannot be written: {error.strerror}") from error

    def note(
        self, number: int, worker: str, slots: NDArray[np.int64], sent_at: float, answered_at: float
    ) -> None:
        """Add an order of round `number`; times are monotonic, in seconds."""
        if self._file is None:
            return
        try:
            if worker not in self._places:
                self._places[worker] = len(self._places)
                self._file.write(self._pack(["worker", self._places[worker], worker]))
            sent, answered = (round((moment + self._epoch) * 1e6) for moment in (sent_at, answered_at))
            packed_slots = slots.astype("<u2").tobytes()
            self._file.write(
                self._pack(["order", number, self._places[worker], sent, answered, packed_slots])
            )
            if answered_at - self._flushed_at >= _FLUSH_SECONDS:
                self._flushed_at = answered_at
                self._file.flush()
        except OSError as error:
            logger.warning("the record of steps ends here: %s: %s", self._path, error.strerror)
            self.close()
            self._file = None

    def close(self) -> None:
        """Bring the rest to the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def read_record(path: Path) -> Iterator[StepRecord]:
    """Yield the orders of a record, up to where a crash cut it short. Raises UserError if it is none."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise UserError(f"{path} is no record of steps: fleet train --mode sync --record-steps FILE")
            yield from _orders(msgpack.Unpacker(file, max_buffer_size=2**20))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (msgpack.UnpackException, ValueError, TypeError, IndexError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error


def _orders(entries: msgpack.Unpacker) -> Iterator[StepRecord]:
    life, workers = -1, dict[int, str]()
    for entry in entries:
        match entry:
            case ["life", *_]:
                life, workers = life + 1, {}
            case ["worker", int(place), str(name)]:
                workers[place] = name
            case ["order", int(number), int(place), int(sent), int(answered), bytes(slots)]:
                yield StepRecord(
                    life,
                    number,
                    workers[place],
                    sent / 1e6,
                    answered / 1e6,
                    np.frombuffer(slots, "<u2").astype(np.int64),
                )
            case _:
                raise ValueError(f"an entry {str(entry)[:40]}")


def _whole_bytes(path: Path) -> int:
    """Return where the last whole entry of a record ends; a crash may have cut the one after it."""
    end = len(_MAGIC)
    with path.open("rb") as file:
        file.seek(end)
        entries = msgpack.Unpacker(file, max_buffer_size=2**20)
        with contextlib.suppress(msgpack.UnpackException):
            while True:
                entries.skip()
                end = len(_MAGIC) + entries.tell()
    return end


def _is_record(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
