"""One trial: the same values trained with each seed in turn, pruned by its evaluations."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Literal

from optuna.trial import Trial

from deploy.exits import Exit
from deploy.sweep.plan import Plan
from deploy.sweep.score import final_returns, over_seeds, score
from deploy.sweep.space import Value, suggest
from deploy.sweep.training import Training

REASON, SECONDS, SEED = "reason", "seconds", "seed "
"""Attributes of a trial in the storage; SEED is followed by the number."""

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trial ended: with a value, pruned, or failed for a reason."""

    state: State
    value: float | None = None
    reason: str = ""


@dataclass(slots=True)
class RunningTrial:
    """A trial between its start and its ending; `look` is called again and again."""

    plan: Plan
    trial: Trial
    cores: int
    reported: set[int] = field(default_factory=set)
    """Steps that the storage knows of; of a trial that is taken up again there are some."""
    values: dict[str, Value] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    """Of the seeds that are done."""
    latest: float | None = None
    """Score of the last evaluation of the present seed."""
    rung: int = 0
    """Of --rungs, up to which the present seed's training is evaluated."""
    began: float = field(default_factory=time.monotonic)
    _training: Training | None = None
    _pruning: bool = False

    def start(self) -> None:
        """Draw values and begin."""
        self.values = suggest(self.plan.space, self.trial)
        self._train()

    def look(self) -> Ending | None:
        """Report new evaluations, see to the process; return the ending once there is one."""
        assert self._training
        status = self._training.poll()  # before the evaluations are read, so that none is missed
        try:
            if not self._pruning:
                self._report(self._training, lives=status is None)
            if status is None:
                return None
            if self._pruning:
                share = self.rung / self.plan.search.rungs
                return Ending("pruned", reason=f"after {share:.0%} of a training")
            if status != Exit.OK:
                return Ending("failed", reason=self._training.reason(status))
            return self._finish_seed(self._training)
        except (OSError, ValueError, KeyError) as error:
            self._training.kill()
            return Ending("failed", reason=f"its results cannot be read: {error}")

    def interrupt(self) -> None:
        """Have the training end; it can be taken up again."""
        if self._training:
            self._training.interrupt()

    def wait(self) -> None:
        """Wait for the end that was asked for."""
        if self._training:
            self._training.wait()

    def kill(self) -> None:
        """End the training at once."""
        if self._training:
            self._training.kill()

    def _train(self) -> None:
        """Begin with the next seed."""
        seed = self.plan.search.training_seeds[len(self.scores)]
        settings = self.plan.settings(self.values, seed, self.cores)
        self.latest, self.rung = None, 0
        self._training = Training(self.plan.folder, f"trial-{self.trial.number:04}-seed-{seed}", settings)

    def _finish_seed(self, training: Training) -> Ending | None:
        returns = final_returns(training.run)
        if not math.isfinite(worth := score(returns)):
            raise ValueError(f"the mean return is {worth}")
        self.scores.append(worth)
        seed = self.plan.search.training_seeds[len(self.scores) - 1]
        self.trial.set_user_attr(f"{SEED}{seed}", {"score": self.scores[-1], "returns": returns})
        if len(self.scores) < self.plan.search.seeds:
            self._train()
            return None
        return Ending("complete", over_seeds(self.scores, self.plan.search.objective))

    def _report(self, training: Training, *, lives: bool) -> None:
        """Report new evaluations, one for each rung, and end a training that is worse than others were."""
        rungs = self.plan.search.rungs
        for update, self.latest in sorted(training.checkpoint_scores().items()):
            self.rung = min(rungs, update * rungs // training.updates)
            step = len(self.scores) * rungs + self.rung
            if not self.rung or step in self.reported:
                continue
            self.reported.add(step)
            self.trial.report(over_seeds([*self.scores, self.latest], self.plan.search.objective), step)
            if lives and self.rung < rungs and self.trial.should_prune():
                self._pruning = True
                training.interrupt()
                return
