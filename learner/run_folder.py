"""The folder of one run: its lock, its incarnation, and the journal of its updates.

runs/<name>/
    config.toml          everything needed to repeat the run
    lock                 held by the learner that owns the run
    incarnation          raised by each start of the learner
    address              where the learner listens
    updates.jsonl        one line per update: what it consumed, appended before its version is published
    checkpoints/         update-00025/, ...
    metrics.csv, tensorboard/, learning_curve.png, evaluation.json, logs/
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from learner.descriptors import with_room
from learner.ledger import Undone
from protocol.errors import UserError
from protocol.messages import Ranges
from protocol.ranges import to_ranges


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """One line of updates.jsonl."""

    incarnation: int
    update: int
    """Number of updates done with this one; also the version it gave."""
    consumed: Ranges
    """Train tickets."""
    versions: tuple[int, ...]
    """The version that each of them was played under, in the order of their numbers."""
    returns: tuple[float, ...]
    """Undiscounted, in the same order."""

    def find(self, number: int) -> tuple[int, float] | None:
        """Return version and return of a ticket, None if this update has not consumed it."""
        before = 0
        for start, stop in self.consumed:
            if start <= number < stop:
                return self.versions[before + number - start], self.returns[before + number - start]
            before += stop - start
        return None


class RunFolder:
    """A run's folder, locked from `__enter__` to `__exit__`; each entry raises the incarnation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.incarnation = 0
        self.run = ""
        self._lock: int | None = None

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    def __enter__(self) -> RunFolder:
        """Lock the folder; raises UserError where another learner holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except IsADirectoryError:
            raise UserError(f"{self.path / 'lock'} is a folder, and should be a file: remove it") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(
                f"another learner is training in {self.path}: stop it, or give this one another --name"
            ) from None
        try:
            self.run, previous = self._last_life() or (uuid.uuid4().hex[:12], 0)
            self.incarnation = previous + 1
            replace_file(self.path / "incarnation", f"{self.run} {self.incarnation}\n")
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)

    def check_owned(self) -> None:
        """Raise UserError where a later incarnation has taken the run over, as one on another host might."""
        try:
            run, incarnation = self._last_life() or (self.run, self.incarnation)
        except OSError:  # no file can be opened now: whoever must write will say so
            return
        if (run, incarnation) != (self.run, self.incarnation):
            raise UserError(
                f"incarnation {incarnation} of run {run} has replaced {self.incarnation} of {self.run} here"
            )

    def _last_life(self) -> tuple[str, int] | None:
        """Return run and incarnation of the last start in this folder, None before the first."""
        file = self.path / "incarnation"
        try:
            run, number = with_room(file.read_text).split()
            if not (number.isdecimal() and len(number) < 19):
                raise ValueError
        except FileNotFoundError:
            return None
        except ValueError:
            mend = "restore it, or begin a new run with --init-from"
            raise UserError(f"{file} is damaged, it should hold the run's id and a number: {mend}") from None
        return run, int(number)

    def write_address(self, address: str) -> None:
        """Note where the learner listens, as HOST:PORT."""
        replace_file(self.path / "address", address + "\n")

    def append_update(self, record: UpdateRecord) -> None:
        """Append one line to updates.jsonl and bring it to the disk; what a crash cut short is removed.

        Raises UserError where a later incarnation has taken the run over.
        """
        self.check_owned()
        file = self.path / "updates.jsonl"
        begins = not file.exists()
        with with_room(lambda: file.open("a+b")) as journal:
            journal.truncate(_whole_bytes(journal))
            journal.write(json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        if begins:
            bring_to_disk(self.path)

    def updates(self) -> Iterator[UpdateRecord]:
        """Yield the records of updates.jsonl; a last line cut short by a crash is left out.

        Raises UserError for a line that is none.
        """
        journal = self.path / "updates.jsonl"
        if not journal.exists():
            return
        for number, line in enumerate(journal.read_bytes().split(b"\n")[:-1], 1):
            try:
                fields = json.loads(line)
                record = UpdateRecord(
                    incarnation=int(fields["incarnation"]),
                    update=int(fields["update"]),
                    consumed=tuple((int(start), int(stop)) for start, stop in fields["consumed"]),
                    versions=tuple(fields["versions"]),
                    returns=tuple(fields["returns"]),
                )
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UserError(f"{journal} is damaged: line {number} is no record of an update") from None
            yield record

    def undone(self, lineage: Sequence[tuple[int, int]]) -> tuple[Undone, ...]:
        """Return what updates consumed that did not survive, by the incarnation that did them.

        `lineage` is what a checkpoint descends from: (incarnation, its last surviving update), oldest first.
        What stands in the journal beside the updates of that line was undone.
        """
        survivors: set[tuple[int, int]] = set()
        begin = 0
        for incarnation, last in lineage:
            survivors.update((incarnation, update) for update in range(begin + 1, last + 1))
            begin = max(begin, last)
        lost: dict[int, list[UpdateRecord]] = {}
        for record in self.updates():
            if (record.incarnation, record.update) not in survivors:
                lost.setdefault(record.incarnation, []).append(record)
        return tuple(_undone(incarnation, records) for incarnation, records in lost.items())


def _undone(incarnation: int, records: Sequence[UpdateRecord]) -> Undone:
    tickets = (number for record in records for pair in record.consumed for number in range(*pair))
    return Undone(incarnation, (records[0].update, records[-1].update), to_ranges(tickets))


def _whole_bytes(journal: IO[bytes]) -> int:
    """Return up to where a file consists of whole lines."""
    size = journal.seek(0, os.SEEK_END)
    journal.seek(max(0, size - 1))
    if journal.read() in (b"", b"\n"):
        return size
    journal.seek(0)
    return journal.read().rfind(b"\n") + 1


def replace_file(path: Path, text: str) -> None:
    """Write a small file so that a crash leaves the old text or the new one."""
    draft = path.with_suffix(".new")
    with with_room(lambda: draft.open("w", encoding="utf-8")) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    bring_to_disk(path.parent)


def bring_to_disk(folder: Path) -> None:
    """Bring the names in a folder to the disk: those that were made, renamed and removed."""
    descriptor = with_room(lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
