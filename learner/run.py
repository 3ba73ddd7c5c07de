"""One training run, start to end: batches in, updates, versions out; a checkpoint and a table at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType

import numpy as np

from learner.checkpoints import Checkpoint, checkpoint_folder, load, prune, save
from learner.descriptors import with_room
from learner.evaluation import Cell
from learner.learning_curve import draw
from learner.mailbox import RunStopped
from learner.opening import LearnerOptions, open_run
from learner.ppo import UpdateAbandoned
from learner.progress import Progress
from learner.reporter import Reporter
from learner.run_folder import UpdateRecord
from learner.selection import Selection
from protocol.messages import Arrays, Episode
from protocol.ranges import to_ranges
from protocol.specs import Scenario

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.1
"""How long to wait for a batch before looking at the stop sign and the display again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    finished: bool
    """False where it was told to stop; `--resume` goes on with it."""
    update: int
    cells: Sequence[Cell]
    """The final evaluation; empty where there was none."""


class Interrupted(Exception):
    """The run was told to stop."""


def scenario_labels(scenarios: Sequence[Scenario]) -> list[str]:
    """Return what tells each scenario from others in the metrics: b_line, or b_line/30 of several lengths."""
    lengths = [scenario.get("episode_length") for scenario in scenarios]
    several = len(set(lengths)) > 1
    agents = [str(scenario.get("red_agent", "all")) for scenario in scenarios]
    return [f"{agent}/{n}" if several else agent for agent, n in zip(agents, lengths, strict=True)]


class LearnerRun:
    """A run between `__enter__`, which locks its folder and listens, and `__exit__`, which lets go of both.

    `show` is called often with the progress; once `should_stop` says so the run ends at the next minibatch.
    """

    def __init__(
        self, options: LearnerOptions, show: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> None:
        self.options, self._should_stop = options, should_stop
        self.config = options.config
        self._labels = scenario_labels(options.environment.train_scenarios)
        self._resources = ExitStack()
        self._reporter = Reporter(options.config, show)
        self._waited_seconds = 0.0
        self._complete = False

    def __enter__(self) -> LearnerRun:
        """Raise UserError where the folder is in use, a checkpoint does not fit or a port is taken."""
        with ExitStack() as opened:
            run = open_run(self.options, opened)
            self._folder, self._trainer, self._policies = run.folder, run.trainer, run.policies
            self._metrics, self._collector, self.ports = run.metrics, run.collector, run.ports
            self._selection = Selection(
                self.options.folder,
                self.options.environment,
                self._collector,
                self._trainer.update,
                self._weights_of,
            )
            self._folder.write_address(f"{self.options.bind}:{self.ports.control}")
            self._resources = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release everything, in reverse order; then draw, when no connection can take the files it reads."""
        self._resources.close()
        if self._complete:
            self._draw()

    def train(self) -> Outcome:
        """Train to the last update, evaluate, and say goodbye to the workers."""
        try:
            while self._trainer.update < self.config.updates:
                self._update(self._next_batch())
            self._checkpoint()
            cells = self._evaluate()
        except (Interrupted, UpdateAbandoned):
            self._checkpoint()
            return Outcome(False, self._trainer.update, [])
        self._checkpoint()  # once more: now its ledger knows the evaluation, too
        self._complete = True
        self._reporter.phase = "done"
        self._tell()
        self._collector.finish("the run is complete")
        return Outcome(True, self._trainer.update, cells)

    # Training

    def _next_batch(self) -> list[Episode]:
        began = time.monotonic()
        self._collector.note_waiting()
        while (batch := self._collector.next_batch(PATIENCE_SECONDS)) is None:
            self._look_up()
        if not batch:
            raise RunStopped(
                f"every ticket of update {self._trainer.update} was discarded: see the log for the reasons"
            )
        self._collector.note_working()
        self._waited_seconds = time.monotonic() - began
        return batch

    def _update(self, episodes: list[Episode]) -> None:
        """Train on one batch, journal it, publish its version; in this order."""
        received = self._collector.episodes_received
        figures = self._trainer.train(episodes, self._stop_sign)
        during_update = self._collector.episodes_received - received
        update = self._trainer.update
        record = UpdateRecord(
            incarnation=self._folder.incarnation,
            update=update,
            consumed=to_ranges(episode.ticket.number for episode in episodes),
            versions=tuple(episode.version.number for episode in episodes),
            returns=tuple(round(episode.undiscounted_return, 4) for episode in episodes),
        )
        self._folder.append_update(record)
        self._policies[update] = self._trainer.policy_arrays()
        oldest = update - self.config.max_lag - 1  # so that the batch of a checkpoint can be replayed, too
        self._policies = {version: arrays for version, arrays in self._policies.items() if version >= oldest}
        self._collector.publish(update, self._policies[update])
        self._reporter.rates.note(len(episodes), sum(episode.length for episode in episodes))
        self._reporter.figures = {
            **figures,
            **self._returns(episodes),
            "wait_seconds": self._waited_seconds,
            "episodes_during_update": during_update,
            "episodes_per_second": self._reporter.rates.episodes,
            "steps_per_second": self._reporter.rates.steps,
            "seconds": self._reporter.rates.elapsed,
        }
        try:
            self._metrics.write(update, self._reporter.figures)
        except OSError as error:
            logger.warning("the metrics of update %d cannot be written: %s", update, error)
        self._selection.take_in()
        if update % self.config.checkpoint_every == 0:
            self._checkpoint()
            self._selection.begin(update, self.config.choosing_episodes)
        self._tell()

    def _returns(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Return the mean undiscounted return by scenario label."""
        groups: dict[str, list[float]] = {}
        for episode in episodes:
            label = self._labels[episode.ticket.number % len(self._labels)]
            groups.setdefault(label, []).append(episode.undiscounted_return)
        present = (label for label in dict.fromkeys(self._labels) if label in groups)
        return {f"return/{label}": float(np.mean(groups[label])) for label in present}

    # Ending

    def _checkpoint(self) -> None:
        """Write weights and ledger of the same update boundary; the row of this update ends the metrics.

        Raises UserError where a later incarnation has taken the run over.
        """
        self._folder.check_owned()
        update = self._trainer.update
        registry = self._collector.snapshot()
        arrays, _ = self._trainer.state()
        folder = self.options.folder / "checkpoints"
        state = {
            "run": self._folder.run,
            "registry": {key: value for key, value in registry.items() if key != "ledger"},
            "seed": self.config.seed,
            "config": asdict(self.config),
            "ppo": asdict(self.options.ppo),
            "environment": asdict(self.options.environment),
            "policy": asdict(self._trainer.spec),
        }
        save(
            checkpoint_folder(folder, update),
            Checkpoint(update, arrays, registry["ledger"], state, self._policies),
        )
        prune(folder, self.config.keep_checkpoints, update, self._selection.kept)

    def _weights_of(self, version: int) -> Arrays:
        """Return the weights of a version that is new or has a checkpoint. Raises UserError else."""
        if version in self._policies:
            return self._policies[version]
        return load(checkpoint_folder(self.options.folder / "checkpoints", version)).versions[version]

    def _evaluate(self) -> list[Cell]:
        """Let the workers play fresh episodes under the best version; return the table and keep it."""
        self._collector.note_waiting()
        self._selection.begin(self._trainer.update, self.config.choosing_episodes)
        self._enter("selecting")
        while self._selection.under_way:
            self._look_up()
            self._selection.take_in(PATIENCE_SECONDS)
        if not self.config.evaluation_episodes:
            return []
        self._enter("evaluating")

        def patience() -> float:
            self._look_up()
            return PATIENCE_SECONDS

        return self._selection.final(self._trainer.update, self.config.evaluation_episodes, patience)

    # Looking up

    def _enter(self, phase: str) -> None:
        self._reporter.enter(phase, self._collector.view.evaluated)

    def _tell(self) -> None:
        self._reporter.tell(self._collector, self._trainer.update, self._selection.wanted)

    def _look_up(self) -> None:
        """Between two waits: show where things stand, and stop if told to or replaced."""
        self._folder.check_owned()
        self._tell()
        if self._should_stop():
            raise Interrupted

    def _stop_sign(self) -> bool:
        self._tell()
        return self._should_stop()

    def _draw(self) -> None:
        folder = self.options.folder
        title = f"{folder.name}: {self.options.environment.name}"
        try:
            with_room(lambda: draw(folder / "metrics.csv", folder / "learning_curve.png", title))
        except OSError as error:
            logger.warning("the learning curve cannot be drawn: %s", error)
