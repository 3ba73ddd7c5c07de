"""The engine that runs worker processes on this machine: started, watched, restarted, ended together."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from deploy.access import KEY_VARIABLE
from deploy.backoff import pause_seconds
from learner.progress import Progress
from protocol.errors import UserError

logger = logging.getLogger(__name__)

SINGLE_THREADED = {
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")},
    "OMP_WAIT_POLICY": "passive",
}
"""Environment of a worker: many processes share the cores, so none may start threads or spin."""

GRACE_SECONDS = 1.5
"""Between SIGTERM and SIGKILL at the end of a run."""

_POLL_SECONDS = 0.1
_HEALTHY_SECONDS = 5.0
_DEATHS_IN_VAIN = 3


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, math.ceil(int(limit) / int(period)))
    return cores


def deal_slots(n_envs: int, workers: int = 0, slots: int = 0) -> list[int]:
    """Return the environments of each worker; 0 workers means one per usable core, 0 slots a fair share."""
    workers = min(workers or usable_cores(), n_envs)
    if slots:
        return [slots] * workers
    return [n_envs // workers + (worker < n_envs % workers) for worker in range(workers)]


@dataclass(slots=True)
class _Place:
    """Where one worker runs: its process now, and what became of those before."""

    number: int
    slots: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    process_id: int = 0
    """Of the last process, whether it lives or not."""
    status: int = 0
    """With which the one before ended."""
    started: float = 0.0
    lived: float = 0.0
    """How long the one before did."""
    drained: bool = False
    """Whether an operator wanted it gone."""
    start_at: float = 0.0
    deaths_in_vain: int = 0
    """In a row, of processes that were of no use."""


class LocalWorkers:
    """Worker processes of a learner, kept alive by a thread until `stopping` is set, which `__exit__` does.

    A worker that ends before the run does, with whatever status, is started again, after a pause that doubles
    while it ends in vain; one that an operator drained, once all shall play again. Their output goes to
    `logs`/worker-N.log.
    """

    def __init__(
        self,
        learner: str,
        slots: Sequence[int],
        logs: Path,
        stopping: threading.Event,
        allow_env: Sequence[str] = (),
        key: Path | None = None,
    ) -> None:
        self._learner, self._allow_env, self._key = learner, allow_env, key
        self._places = [_Place(n, k, logs / f"worker-{n}.log") for n, k in enumerate(slots)]
        self._stopping, self._over = stopping, False
        self._drained: set[int] = set()
        """Processes that an operator wants gone: they are not started again until all shall play."""
        self._thread = threading.Thread(target=self._watch, name="local workers", daemon=True)

    def __enter__(self) -> LocalWorkers:
        """Start the workers."""
        self._places[0].log.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, within GRACE_SECONDS and a moment."""
        self._stopping.set()
        self._thread.join()

    def check(self, progress: Progress) -> None:
        """Learn which workers are of use, and whether the run is over: then they may go.

        Raises UserError, with the end of a log, once no worker of the run can be kept alive.
        """
        self._over = progress.phase == "done"
        self._drained = {pid for host, pid in progress.drained if host == socket.gethostname()}
        now = time.monotonic()
        for place in self._places:
            # One that is ready after its death died without a word, of a ticket: the learner counts that.
            dead_or_healthy = place.process is None or now - place.started > _HEALTHY_SECONDS
            if place.process_id in progress.processes and dead_or_healthy:
                place.deaths_in_vain = 0
        if all(place.deaths_in_vain >= _DEATHS_IN_VAIN for place in self._places):
            place = self._places[0]
            lines = place.log.read_text(errors="replace").strip().split("\n")
            told = f"with status {place.status}; the end of {place.log}: {lines[-1]}"
            raise UserError(f"every worker ends as soon as it starts, {told}")

    @property
    def process_ids(self) -> list[int]:
        """Return the process ids of the workers that run now."""
        return [place.process.pid for place in self._places if place.process]

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            for place in self._places:
                self._tend(place, time.monotonic())
        running = [place.process for place in self._places if place.process]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tend(self, place: _Place, now: float) -> None:
        """Start a worker that is due, and note one that has ended; status 0 may mean drained."""
        if place.process is None:
            place.drained |= place.process_id in self._drained
            wanted = not self._over and place.process_id not in self._drained
            if wanted and now >= place.start_at and place.deaths_in_vain < _DEATHS_IN_VAIN:
                if place.process_id and not (place.status or place.drained):
                    _tell_of_end(place)
                place.drained = False
                place.process, place.started = self._start(place), now
                place.process_id = place.process.pid
        elif place.process.poll() is not None:
            place.status, place.process = place.process.returncode, None
            place.lived = now - place.started
            place.deaths_in_vain += 1
            place.start_at = now + pause_seconds(place.deaths_in_vain)
            if place.status and not self._over:
                _tell_of_end(place)

    def _start(self, place: _Place) -> subprocess.Popen[bytes]:
        # -P: a folder of ours in the user's working directory is not this program.
        command = [sys.executable, "-P", "-m", "deploy.tether", str(os.getpid()), "rollout_worker"]
        command += ["--learner", self._learner, "--slots", str(place.slots)]
        command += ["--pool", "local", "--label", f"worker-{place.number}"]
        command += [text for module in self._allow_env for text in ("--allow-env", module)]
        with place.log.open("ab") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, **SINGLE_THREADED, KEY_VARIABLE: str(self._key or "")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process only, which ends them in order
            )


def _tell_of_end(place: _Place) -> None:
    logger.warning("worker %d ended with status %d after %.1f s", place.number, place.status, place.lived)
