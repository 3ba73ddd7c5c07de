"""The search: optuna proposes values and prunes, trials run them, a journal outlives any of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from deploy.local import usable_cores
from deploy.settings import Settings
from deploy.sweep.plan import Plan, Search
from deploy.sweep.space import usual_values
from deploy.sweep.trial import REASON, SECONDS, Ending, RunningTrial
from protocol.errors import FleetError

_POLL_SECONDS = 0.1
_FAILURES_IN_VAIN = 3
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Sweep:
    """The trials of a plan, whose folder is locked by the caller.

    `show` is called often with those that run, `tell` once with each that has ended.
    """

    def __init__(
        self,
        plan: Plan,
        show: Callable[[list[RunningTrial]], None],
        tell: Callable[[FrozenTrial], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._plan, self._show, self._tell, self._should_stop = plan, show, tell, should_stop
        self.study = open_study(plan)
        self._running: list[RunningTrial] = []
        self._cores = usable_cores()

    def run(self) -> bool:
        """Run all trials; return False where it was told to stop, all trainings ended but not forgotten.

        Raises FleetError once trials fail and none has succeeded.
        """
        left_behind = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        try:
            while not self._should_stop():
                self._begin(left_behind)
                if not self._running:
                    return True
                for running in list(self._running):
                    if ending := running.look():
                        self._end(running, ending)
                self._show(self._running)
                time.sleep(_POLL_SECONDS)
            for running in self._running:
                running.interrupt()
            for running in self._running:
                running.wait()
            return False
        finally:
            for running in self._running:
                running.kill()

    def _begin(self, left_behind: list[FrozenTrial]) -> None:
        """Take up trials that a sweep before this one left behind, then new ones, up to --parallel."""
        search = self._plan.search
        while len(self._running) < search.parallel:
            if left_behind:
                frozen = left_behind.pop(0)
                trial, reported = Trial(self.study, frozen._trial_id), set(frozen.intermediate_values)
            elif self._begun < search.trials:
                trial, reported = self.study.ask(), set()
            else:
                return
            self._running.append(RunningTrial(self._plan, trial, self._cores, reported))
            self._running[-1].start()

    @property
    def _begun(self) -> int:
        trials = self.study.get_trials(deepcopy=False)
        return sum(trial.state != TrialState.WAITING for trial in trials)

    def _end(self, running: RunningTrial, ending: Ending) -> None:
        self._running.remove(running)
        running.trial.set_user_attr(REASON, ending.reason)
        running.trial.set_user_attr(SECONDS, round(time.monotonic() - running.began, 1))
        frozen = self.study.tell(running.trial, ending.value, _STATES[ending.state])
        self._tell(frozen)
        done = self.study.get_trials(deepcopy=False, states=tuple(_STATES.values()))
        if len(done) >= min(_FAILURES_IN_VAIN, self._plan.search.trials) and all(
            trial.state == TrialState.FAIL for trial in done
        ):
            raise FleetError(f"every trial has failed ({len(done)}), the last because: {ending.reason}")


def open_study(plan: Plan) -> optuna.Study:
    """Return the study that a plan's folder keeps, or a new one, which begins where the defaults lie."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(_mended(plan.folder / "journal.log")))),
        study_name="sweep",
        direction="maximize",
        load_if_exists=True,
        pruner=_pruner(plan.search),
    )
    begun = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=plan.search.startup_trials, seed=plan.search.seed + begun
    )
    if not begun and (usual := usual_values(plan.space, _fields(plan.base))):
        study.enqueue_trial(usual)
    return study


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    if search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(1, search.seeds * search.rungs)
    if search.pruner == "median":
        # Who is ahead in the first fifth of a training says little of its end.
        return optuna.pruners.MedianPruner(search.startup_trials, n_warmup_steps=search.rungs // 5)
    return optuna.pruners.NopPruner()


def _mended(journal: Path) -> Path:
    """Remove what a killed sweep left: a part of a last line, and a lock that is nobody's."""
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink()
    with suppress(FileNotFoundError), journal.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    return journal


def _fields(settings: Settings) -> dict[str, object]:
    parts = (settings.run, settings.ppo, settings.launch)
    return {name: getattr(part, name) for part in parts for name in part.__dataclass_fields__}
