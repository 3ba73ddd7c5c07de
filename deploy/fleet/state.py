"""A fleet's state on disk: what is wanted, written by commands, and what is seen, by the supervisor.

runs/NAME/fleet/
    desired.json       pools, counts, whether the learner should run
    observed.json      members, failures, reasons, and what must outlive a supervisor
    supervisor.lock    held by the one process that brings the two together
    supervisor.log
    reserve            room that is kept for the two files on a disk that is full
    processes/         of this machine, each with a lock of its own
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

from deploy.engines.catalogue import fit_options
from deploy.engines.processes import is_locked
from deploy.fleet.learner_process import Place
from deploy.fleet.plan import PoolKeys
from deploy.plain_values import fitted
from deploy.runs import RUNS
from learner.run_folder import replace_file
from protocol.addresses import parse_address
from protocol.errors import UserError

_RESERVED_BYTES = 2**16

Phase = Literal["up", "drain", "down"]
"""All members are wanted; none is, once its episodes are played; none is, now."""


@dataclass(frozen=True, slots=True)
class DesiredLearner:
    """The learner that is wanted."""

    config: str
    """The text of its config.toml: all of its settings."""
    place: Place
    address: str
    """HOST:PORT as its supervisor reaches it."""
    key: str = ""
    """The operator's key file on this machine, for a learner that lets in only whom it knows."""

    @property
    def key_file(self) -> Path | None:
        """Return the key file, None for that of the environment, if any."""
        return Path(self.key) if self.key else None


@dataclass(frozen=True, slots=True)
class DesiredPool:
    """A pool that is wanted; one that is to go has a count of 0 and is `removed`."""

    engine: str
    options: Mapping[str, Any]
    """Of the engine, as its file has them."""
    learner: str
    """HOST:PORT as its machines reach the learner."""
    count: int | None
    """None: as many as the engine has room for, or as autoscaling says."""
    min: int = 0
    max: int | None = None
    target: str = ""
    slots: int = 50
    key: str = ""
    allow_env: tuple[str, ...] = ()
    drain_seconds: float = 600.0
    former_hosts: tuple[str, ...] = ()
    """Hosts that left its list, where workers may be left."""
    removed: bool = False

    @property
    def launch(self) -> tuple[Any, ...]:
        """Return what every worker is told; where it changes, the workers are replaced."""
        return (self.learner, self.slots, self.key, self.allow_env)


@dataclass(frozen=True, slots=True)
class Desired:
    """All that is wanted of one fleet."""

    fleet: str
    """Random: tells this fleet's workers from those of others, whatever their runs are called."""
    generation: int
    """Raised by each command; failures before it are forgiven."""
    phase: Phase
    learner: DesiredLearner
    pools: Mapping[str, DesiredPool] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Desired:
        """Return what `asdict` and JSON made plain.

        Raises KeyError, TypeError, ValueError or UserError for what no command has written.
        """
        desired = cast(Desired, fitted(cls, plain))
        parse_address(desired.learner.address)
        for pool in desired.pools.values():
            fit_options(pool.engine, pool.options)
            shared = {entry.name: getattr(pool, entry.name) for entry in fields(PoolKeys)}
            PoolKeys(**shared)
        return desired


class FleetFolder:
    """The folder `fleet` of a run."""

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / "fleet"

    @property
    def log(self) -> Path:
        """Return the supervisor's log."""
        return self.path / "supervisor.log"

    def desired(self) -> Desired | None:
        """Return what is wanted, None where no fleet ever was. Raises UserError for a damaged file."""
        plain = self._read("desired.json")
        try:
            return None if plain is None else Desired.from_plain(plain)
        except (KeyError, TypeError, ValueError, RecursionError, UserError) as error:
            raise UserError(
                f"{self.path / 'desired.json'} is damaged or of another release: {error!r}; remove it, "
                "and fleet up writes it anew"
            ) from error

    def observed(self) -> Mapping[str, Any]:
        """Return what a supervisor saw last; empty where there is nothing."""
        try:
            return self._read("observed.json") or {}
        except UserError:  # a supervisor writes it anew
            return {}

    def write_observed(self, plain: Mapping[str, Any]) -> None:
        """Write what is seen."""
        self._write("observed.json", plain)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock under which `desired.json` is read, changed and written. Raises UserError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._locked("desired.lock", wait=True):
                yield
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error

    def write_desired(self, desired: Desired) -> int:
        """Write what is wanted as the next generation, and return which; call it within `changing`."""
        before = self.desired()
        generation = before.generation + 1 if before else 1
        plain = asdict(replace(desired, generation=generation))
        self._write("desired.json", plain)
        return generation

    @contextmanager
    def supervising(self) -> Iterator[bool]:
        """Hold the lock of the one supervisor, with its process id in it; yield whether it was free."""
        with self._locked("supervisor.lock", wait=False) as free:
            if free:
                (self.path / "supervisor.lock").write_text(f"{os.getpid()}\n")
            yield free

    def supervised(self) -> bool:
        """Return whether a supervisor lives."""
        return is_locked(self.path / "supervisor.lock")

    def is_up(self) -> bool:
        """Return whether a supervisor lives, or one would find something to keep."""
        with suppress(UserError):
            desired = self.desired()
            wanted = desired is not None and desired.phase == "up"
            return self.supervised() or (wanted and self.observed().get("phase") != "finished")
        return False

    def kill_supervisor(self) -> None:
        """End a supervisor that does nothing any more; it holds nothing that another could not find."""
        with suppress(OSError, ValueError):
            process_id = int((self.path / "supervisor.lock").read_text())
            if self.supervised() and process_id != os.getpid():
                os.kill(process_id, signal.SIGKILL)

    @contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[bool]:
        file = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(file)

    def _write(self, name: str, plain: Mapping[str, Any]) -> None:
        """Replace a file; on a full disk in the room that is kept, so that a fleet can still be ended."""
        text, kept = json.dumps(plain, indent=1) + "\n", self.path / "reserve"
        try:
            replace_file(self.path / name, text)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not kept.exists():
                raise
            kept.unlink(missing_ok=True)
            replace_file(self.path / name, text)
        with suppress(OSError):  # the file that was replaced has made room
            if not kept.exists() or kept.stat().st_size < 2 * len(text):
                _allocate(kept, max(_RESERVED_BYTES, 3 * len(text)))

    def _read(self, name: str) -> Mapping[str, Any] | None:
        mend = "fleet up writes it anew once it is removed"
        try:
            plain = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name} is damaged: {error}; {mend}") from error
        if not isinstance(plain, dict):
            raise UserError(f"{self.path / name} is damaged: it holds no table; {mend}")
        return plain


def _allocate(path: Path, size_bytes: int) -> None:
    """Make a file that takes up this much of the disk, or none. Raises OSError."""
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def find_fleet(text: str | None) -> FleetFolder:
    """Return the fleet of a run by name or folder, without one the only one that is up. Raises UserError."""
    if text:
        for run in (Path(text), RUNS / text):
            if os.path.isfile(run / "fleet" / "desired.json"):
                return FleetFolder(run)
        raise UserError(f"no fleet of a run {text!r}: fleet up -f FILE begins one")
    folders = [FleetFolder(file.parent.parent) for file in sorted(RUNS.glob("*/fleet/desired.json"))]
    up = [folder for folder in folders if folder.is_up()]
    if len(up) == 1:
        return up[0]
    names = ", ".join(folder.run.name for folder in up or folders)
    if not folders:
        raise UserError(f"no fleet under {RUNS}/: fleet up -f FILE begins one")
    raise UserError(
        f"{len(up)} fleets are up: name one of {names}" if up else f"no fleet is up; down are {names}"
    )
