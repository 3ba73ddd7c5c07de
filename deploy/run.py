"""One run in this process: the learner, the workers of this machine, the display, the log and the signals."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.logging import RichHandler

from deploy.access import keyring_of
from deploy.exits import Exit
from deploy.json_file import write_json
from deploy.local import LocalWorkers
from deploy.progress import ProgressDisplay
from deploy.runs import FINISHED, OUTCOME
from deploy.settings import Settings, to_toml
from deploy.storage import storage_told
from learner.evaluation import evaluation_plain, evaluation_table
from learner.opening import LearnerOptions, own_keys
from learner.progress import Progress
from learner.run import LearnerRun, Outcome
from learner.run_folder import replace_file
from protocol.addresses import Ports
from protocol.errors import FleetError
from protocol.specs import EnvironmentSpec

logger = logging.getLogger(__name__)

_SAME_WISH_SECONDS = 1.0


@dataclass(slots=True)
class StopSign:
    """Raised by Ctrl-C or SIGTERM, and at the end of a run."""

    raised: threading.Event = field(default_factory=threading.Event)
    signal: int = 0


def run(
    settings: Settings,
    folder: Path,
    environment: EnvironmentSpec,
    ports: Ports | None,
    *,
    resume: bool,
    local_slots: Sequence[int] = (),
    json_file: Path | None = None,
) -> Exit:
    """Run the learner to its end, beside a worker process for each number of `local_slots`.

    Raises UserError where the run cannot begin; a folder that was made for it is removed.
    """
    options = _options(settings, folder, environment, ports, resume)
    console, made = Console(stderr=True), not os.path.exists(folder)
    log = folder / "logs" / "learner.log"
    with storage_told(folder), _stop_signals() as stop, _logging(log, console):
        try:
            outcome = _train(options, settings, local_slots, console, stop)
        except FleetError as error:
            logger.error("%s", error)
            if made and not (folder / "config.toml").exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except Exception as error:
            logger.exception("unexpected")
            error.add_note(f"the traceback is in {log}")
            raise
    command = "train" if local_slots else "learner"
    return _report(outcome, f"fleet {command} --resume {folder.name}", folder, stop, console, json_file)


def _options(
    settings: Settings, folder: Path, environment: EnvironmentSpec, ports: Ports | None, resume: bool
) -> LearnerOptions:
    launch = settings.launch
    return LearnerOptions(
        config=settings.run,
        ppo=settings.ppo,
        environment=environment,
        folder=folder,
        bind=launch.bind,
        ports=ports,
        insecure=launch.insecure,
        keyring=keyring_of(launch),
        resume=resume,
        init_from=Path(launch.init_from) if launch.init_from else None,
        record_steps=Path(launch.record_steps) if launch.record_steps else None,
        step_hook=launch.step_hook,
    )


def _train(
    options: LearnerOptions, settings: Settings, slots: Sequence[int], console: Console, stop: StopSign
) -> Outcome:
    """Start everything, train, end everything."""
    display = ProgressDisplay(options.folder.name, console)
    workers: LocalWorkers | None = None

    def show(progress: Progress) -> None:
        if workers:
            workers.check(progress)
        display.show(progress)

    with ExitStack() as started:
        learner = started.enter_context(LearnerRun(options, show, stop.raised.is_set))
        (options.folder / OUTCOME).unlink(missing_ok=True)
        replace_file(options.folder / "config.toml", to_toml(settings))
        everywhere, port = options.bind in ("0.0.0.0", "::"), learner.ports.control
        host = socket.gethostname() if everywhere else options.bind
        _say(console, f"Run {options.folder}, learner on {host}:{port}")
        if (planned := settings.run.planned_episodes) != settings.run.total_episodes:
            _say(console, f"Trains on {planned:,} episodes: {settings.run.updates:,} whole batches")
        if slots:
            address = f"{'127.0.0.1' if everywhere else options.bind}:{port}"
            logs, allow_env = options.folder / "logs", settings.launch.allow_env
            key = own_keys(options.folder)["worker"] if options.keyring else None
            workers = LocalWorkers(address, slots, logs, stop.raised, allow_env, key)
            started.enter_context(workers)
        else:
            key_option = " --key FILE (fleet keys new NAME makes one)" if options.keyring else ""
            _say(console, f"Start workers: fleet worker --learner {host}:{port}{key_option}")
        started.enter_context(display)
        return learner.train()


def _report(
    outcome: Outcome, again: str, folder: Path, stop: StopSign, console: Console, json_file: Path | None
) -> Exit:
    """Print how the run ended and return the exit status."""
    if not outcome.finished:
        _say(console, f"Stopped after update {outcome.update}; {again} goes on")
        return Exit.INTERRUPTED if stop.signal == signal.SIGINT else Exit.TERMINATED
    replace_file(folder / OUTCOME, f"{FINISHED} {outcome.update}\n")
    if outcome.cells:
        Console().print(evaluation_table(outcome.cells))
    write_json(json_file, evaluation_plain(outcome.cells))
    _say(console, f"Checkpoints, metrics and learning_curve.png are in {folder}")
    return Exit.OK


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _stop_signals() -> Iterator[StopSign]:
    """Turn the first Ctrl-C or SIGTERM into a stop sign; a later one ends the process as usual.

    Those that follow at once are of the same wish: timeout and schedulers signal the process and its group.
    """
    stop = StopSign()
    again_at = math.inf
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop_now(number: int, frame: FrameType | None) -> None:
        nonlocal again_at
        now = time.monotonic()
        if not stop.signal:
            stop.signal, again_at = number, now + _SAME_WISH_SECONDS
            stop.raised.set()
        elif now >= again_at:
            restore()
            signal.raise_signal(number)

    for number in numbers:
        signal.signal(number, stop_now)
    try:
        yield stop
    finally:
        restore()


@contextmanager
def _logging(file: Path, console: Console) -> Iterator[None]:
    """Log everything to a file, and warnings above the display."""
    logging.raiseExceptions = False  # a line that finds no room on the disk is no reason for a traceback
    file.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(file, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    to_console = RichHandler(logging.WARNING, console, show_path=False, show_level=False)
    to_console.addFilter(lambda record: record.levelno == logging.WARNING)  # errors become the last line
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(to_file)
    root.addHandler(to_console)
    try:
        yield
    finally:
        root.removeHandler(to_file)
        root.removeHandler(to_console)
        to_file.close()
