"""A learner and workers as processes, a network that can be cut, and the faults that hit them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from benchmarks.chaos_schedule import Fault, Update
from benchmarks.relay import Relay
from protocol.errors import FleetError

FLEET = str(Path(sys.executable).with_name("fleet"))
LINKS = 3
"""Networks between workers and learner, each cut by itself."""
REPLACED_AFTER_SECONDS, RESTARTED_AFTER_SECONDS = 2.0, 1.0
"""When a worker that was killed is replaced, and the learner started again."""
FEWEST, MOST = 2, 6
"""Workers."""
START_SECONDS, STOP_SECONDS = 120.0, 60.0
_ENVIRONMENT = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process."""

    number: int
    process: subprocess.Popen[bytes]
    frozen: bool = False
    doomed: bool = False
    """It was killed or told to leave."""


@dataclass(slots=True)
class Befallen:
    """A fault that was injected, and the learner's incarnation by then."""

    fault: Fault
    at: float
    incarnation: int


@dataclass(slots=True)
class Fleet:
    """One run in `folder`, named `name`, with so many slots to a worker; `options` are those of its learner.

    `turn` goes round once: starts what is to be started, ends what lasted long enough, reads the journal.
    """

    folder: Path
    name: str
    slots: int
    options: list[str]
    workers: list[Worker] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    """As they appeared in the journal, those that are later rolled back included."""
    befallen: list[Befallen] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Faults that found nobody to hit."""
    gave_up: list[str] = field(default_factory=list)
    """Workers that ended though nobody had told them to."""
    started: int = 0
    learner: subprocess.Popen[bytes] | None = None
    _port: int = 0
    _read_bytes: int = 0
    """Of the journal."""
    _relays: list[Relay] = field(default_factory=list)
    _due: list[tuple[float, str, object]] = field(default_factory=list)
    _resources: ExitStack = field(default_factory=ExitStack)

    @property
    def run(self) -> Path:
        """Return the run's folder."""
        return self.folder / "runs" / self.name

    @property
    def journals(self) -> list[Path]:
        """Return what every worker told, those included that are gone."""
        return sorted((self.folder / f"{self.name}-workers").glob("*.journal"))

    def __enter__(self) -> Fleet:
        """Start the learner and the network."""
        with ExitStack() as opened:
            opened.callback(self._kill_all)
            address = self.run / "address"
            self._start_learner("--name", self.name, "--port", "auto", *self.options)
            deadline = time.monotonic() + START_SECONDS
            while not address.exists():
                if self.learner is None or self.learner.poll() is not None or time.monotonic() > deadline:
                    raise FleetError(
                        f"the learner did not start: see {self.folder / f'{self.name}-learner.log'}"
                    )
                time.sleep(0.05)
            self._port = int(address.read_text().rpartition(":")[2])
            ports = range(self._port, self._port + 4)
            self._relays = [opened.enter_context(Relay(ports)) for _ in range(LINKS)]
            self._resources = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what is left."""
        self._resources.close()

    # Time goes by

    def turn(self) -> None:
        """Do what is due and look at the journal. FleetError where the learner ended by itself."""
        now = time.monotonic()
        due = [entry for entry in self._due if entry[0] <= now]
        self._due = [entry for entry in self._due if entry[0] > now]
        for _, what, whom in due:
            self._do(what, whom)
        for worker in [worker for worker in self.workers if worker.process.poll() is not None]:
            self.workers.remove(worker)
            if not worker.doomed:
                self.gave_up.append(f"worker {worker.number} (exit status {worker.process.returncode})")
        if self.learner is not None and self.learner.poll() is not None:
            raise FleetError(
                f"the learner ended by itself, with status {self.learner.returncode}:"
                f" see {self.folder / f'{self.name}-learner.log'}"
            )
        self.look(now)

    def look(self, now: float) -> None:
        """Note the updates that are new in the journal."""
        journal = self.run / "updates.jsonl"
        if not journal.exists():
            return
        with journal.open("rb") as file:
            file.seek(self._read_bytes)
            whole, _, _ = file.read().rpartition(b"\n")
        for line in whole.splitlines():
            record = json.loads(line)
            tickets = sum(stop - start for start, stop in record["consumed"])
            self.updates.append(Update(now, record["incarnation"], tickets))
        self._read_bytes += len(whole) + bool(whole)

    def calm(self) -> None:
        """End every fault, at once, and see that somebody plays."""
        due, self._due = self._due, []
        for _, what, whom in due:
            self._do(what, whom)
        while len(self.workers) < FEWEST:
            self.add_worker()

    def add_worker(self) -> None:
        """Start a worker, on the next of the networks."""
        self.started += 1
        logs = self.folder / f"{self.name}-workers"
        logs.mkdir(exist_ok=True)
        ports = self._relays[self.started % LINKS].ports
        command = [sys.executable, "-P", "-m", "rollout_worker", "--learner", f"127.0.0.1:{ports[0]}"]
        command += ["--ports", ",".join(map(str, ports)), "--slots", str(self.slots)]
        command += ["--journal", str(logs / f"{self.started:04d}.journal")]
        with (logs / f"{self.started:04d}.log").open("wb") as log:
            self.workers.append(Worker(self.started, self._popen(command, log)))

    def resume(self, *options: str) -> None:
        """Start the learner again, on its port."""
        self._start_learner("--resume", self.name, "--port", str(self._port), *options)

    def stop_learner(self) -> None:
        """Ask it to stop at its next boundary, and wait for that."""
        assert self.learner is not None
        self.learner.terminate()
        self.learner.wait(STOP_SECONDS)
        self.learner = None

    # Faults

    def befall(self, fault: Fault) -> None:
        """Inject a fault, if there is anyone whom it can hit."""
        if not self._hit(fault):
            self.skipped[fault.kind] += 1
            return
        incarnation = self.updates[-1].incarnation if self.updates else 0
        self.befallen.append(Befallen(fault, time.monotonic(), incarnation))

    def _hit(self, fault: Fault) -> bool:
        until = time.monotonic() + fault.seconds
        awake = [worker for worker in self.workers if not worker.frozen]
        worker = awake[int(fault.place * len(awake))] if awake else None
        relay = self._relays[int(fault.place * LINKS)]
        match fault.kind:
            case "worker killed" if worker:
                worker.doomed = True
                worker.process.kill()
                self._due.append((until + REPLACED_AFTER_SECONDS, "add worker", None))
            case "worker frozen" if worker:
                worker.process.send_signal(signal.SIGSTOP)
                worker.frozen = True
                self._due.append((until, "thaw", worker))
            case "worker added" if len(self.workers) < MOST:
                self.add_worker()
            case "worker removed" if worker and len(awake) > FEWEST:
                worker.doomed = True
                worker.process.terminate()
            case "network cut":
                relay.cut()
                self._due.append((until, "heal", relay))
            case "network stalled":
                relay.stall()
                self._due.append((until, "heal", relay))
            case "learner frozen" if self.learner:
                self.learner.send_signal(signal.SIGSTOP)
                self._due.append((until, "thaw learner", self.learner))
            case "learner killed" if self.learner:
                self.learner.kill()
                self.learner.wait()
                self.learner = None
                self._due.append((until + RESTARTED_AFTER_SECONDS, "resume", None))
            case _:
                return False
        return True

    def _do(self, what: str, whom: object) -> None:
        match whom:
            case Worker():
                whom.frozen = False
                if whom.process.poll() is None:
                    whom.process.send_signal(signal.SIGCONT)
            case Relay():
                whom.heal()
            case subprocess.Popen():
                if whom.poll() is None:
                    whom.send_signal(signal.SIGCONT)
            case _ if what == "resume":
                self.resume()
            case _ if len(self.workers) < MOST:
                self.add_worker()

    # Processes

    def _start_learner(self, *arguments: str) -> None:
        with (self.folder / f"{self.name}-learner.log").open("ab") as log:
            self.learner = self._popen([FLEET, "learner", *arguments], log)

    def _popen(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def _processes(self) -> Iterator[subprocess.Popen[bytes]]:
        yield from (worker.process for worker in self.workers)
        if self.learner is not None:
            yield self.learner

    def _kill_all(self) -> None:
        for process in self._processes():
            process.kill()
            process.wait()
