"""One run of a comparison: `fleet train` in a process, asked for its status five times a second."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.query import ask
from deploy.settings import Settings, to_toml
from learner.metrics import Row, read_metrics
from protocol.errors import FleetError, UserError

SAMPLE_SECONDS = 0.2
_LAST_LINES = 3
_END_SECONDS = 5.0
_MOST_SECONDS = 400.0
"""Of a run that ends when enough was seen of it."""


@dataclass(frozen=True, slots=True)
class WorkerSample:
    """What a worker had done by its last heartbeat."""

    at: float
    """Monotonic, of the heartbeat."""
    steps: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What a learner's status said."""

    at: float
    """Monotonic seconds, as in all others."""
    first_issued_at: float
    last_issued_at: float
    """Of the train tickets; NaN before."""
    version: int
    ready: int
    """Workers that play or host."""
    measured: Mapping[str, float]
    """What has added up in the learner, see `Collector.measured`."""
    workers: Mapping[str, WorkerSample]

    @classmethod
    def of(cls, status: Mapping[str, Any], at: float) -> Sample:
        """Read a status report that came at this time."""
        issuing = status["issuing_seconds"]
        workers = {
            f"{worker['host']}:{worker['pid']}": WorkerSample(
                at - worker["heartbeat_age_seconds"], worker["steps"], worker["cpu_seconds"]
            )
            for worker in status["workers"]
        }
        first, last = (
            math.nan if since is None else at - since
            for since in (issuing["since_first"], issuing["since_last"])
        )
        ready = sum(worker["state"] == "ready" for worker in status["workers"])
        return cls(at, first, last, status["version"], ready, status["measured"], workers)


@dataclass(frozen=True, slots=True)
class Recording:
    """One run, from the start of its process to its end."""

    began: float
    ended: float
    samples: Sequence[Sample]
    rows: Sequence[Row]
    """Of its metrics.csv."""
    foreign_cores: float
    """Cores that others kept busy just before; NaN where the system does not tell."""


def record(
    settings: Settings, folder: Path, name: str, enough: Callable[[Sequence[Sample]], bool] | None = None
) -> Recording:
    """Run `fleet train` as runs/`name` in `folder`, to its end or until `enough` says so of its samples.

    Raises FleetError with its last lines, or where `enough` does not come true in time.
    """
    config, log = folder / f"{name}.toml", folder / f"{name}.log"
    config.write_text(to_toml(settings), encoding="utf-8")
    foreign = busy_cores(1.0)
    samples: list[Sample] = []
    stopped = False
    began = time.monotonic()
    with _training(folder, config, log, name) as (process, ended):
        address = folder / "runs" / name / "address"
        while not ended:
            time.sleep(SAMPLE_SECONDS)
            if address.exists():
                with contextlib.suppress(UserError):  # it has just ended
                    status = ask(address.read_text().strip(), "status")
                    samples.append(Sample.of(status, time.monotonic()))
            if enough and time.monotonic() - began > _MOST_SECONDS:
                raise FleetError(f"the workers of {name} are not all there after {_MOST_SECONDS:.0f} s")
            if stopped := bool(enough and enough(samples)):
                break
    if process.returncode and not stopped:
        last = " | ".join(log.read_text(errors="replace").strip().split("\n")[-_LAST_LINES:])
        raise FleetError(f"the run {folder / 'runs' / name} ended with status {process.returncode}: {last}")
    rows = read_metrics(folder / "runs" / name / "metrics.csv")
    return Recording(began, ended[0], samples, rows, foreign)


@contextlib.contextmanager
def _training(
    folder: Path, config: Path, log: Path, name: str
) -> Iterator[tuple[subprocess.Popen[bytes], list[float]]]:
    """Start a training; give its process and a list that its end is put into. It ends with the block."""
    command = [sys.executable, "-P", "-m", "deploy.tether", str(os.getpid()), "deploy"]
    command += ["train", "--config", str(config.resolve()), "--name", name]
    ended: list[float] = []
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )

    def wait() -> None:
        process.wait()
        ended.append(time.monotonic())

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    try:
        yield process, ended
    finally:
        if not ended:
            process.terminate()
            waiter.join(_END_SECONDS)
            process.kill()
        waiter.join()


def busy_cores(seconds: float) -> float:
    """Return how many cores are busy over the next `seconds`; NaN where the system does not tell."""

    def ticks() -> float:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

    try:
        before = ticks()
    except OSError:
        return math.nan
    time.sleep(seconds)
    return (ticks() - before) / seconds
