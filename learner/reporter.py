"""Tells the user and the operators where a run stands."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Mapping

from learner.collector import Collector
from learner.config import RunConfig
from learner.progress import Progress, Rates

logger = logging.getLogger(__name__)

FILES_PER_WORKER = {"async": 3, "sync": 4}
"""Connections of each worker, by mode."""
CROWDED = 0.8
"""The share of the open files that this process may have from which on the user is told."""


class Reporter:
    """Calls `show` with the progress; says once where few more workers can connect."""

    def __init__(self, config: RunConfig, show: Callable[[Progress], None]) -> None:
        self._config, self._show = config, show
        self.phase = "training"
        self._evaluated_before = 0
        """Episodes of evaluations when the phase began."""
        self._crowded = False
        self.rates = Rates()
        self.figures: Mapping[str, float] = {}
        """Of the last update."""

    def enter(self, phase: str, evaluated: int) -> None:
        """Begin a phase, before which so many episodes of evaluations were played."""
        self.phase, self._evaluated_before = phase, evaluated

    def tell(self, collector: Collector, update: int, wanted: int) -> None:
        """Tell of a run after this update; `wanted` counts the episodes asked for, of all evaluations."""
        view, config = collector.view, self._config
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if not self._crowded and (line := crowded(view.status.ready, FILES_PER_WORKER[config.mode], limit)):
            self._crowded = True
            logger.warning(line)
        received = update * config.episodes_per_update + view.status.received
        nobody = "paused" if view.status.binds == "pause" else "waiting for workers"
        phase = self.phase if view.status.ready or self.phase != "training" else nobody
        progress = Progress(
            phase=phase,
            episodes=min(received, config.planned_episodes),
            total_episodes=config.planned_episodes,
            update=update,
            updates=config.updates,
            update_seconds=self.figures.get("update_seconds", 0.0),
            episodes_per_second=self.rates.episodes,
            steps_per_second=self.rates.steps,
            returns={
                name.removeprefix("return/"): value
                for name, value in self.figures.items()
                if name.startswith("return/")
            },
            lag_mean=self.figures.get("lag_mean", 0.0),
            lag_max=int(self.figures.get("lag_max", 0)),
            workers=view.status.ready,
            slots=view.status.ready_slots,
            processes=view.status.processes,
            drained=view.status.drained,
            waiting_for=view.status.binds,
            evaluated=view.evaluated - self._evaluated_before,
            to_evaluate=wanted - self._evaluated_before,
        )
        collector.progress = progress.to_plain()
        self._show(progress)


def crowded(workers: int, files: int, limit: int) -> str:
    """Say that few more workers, of so many files each, can connect under this limit; empty if many can."""
    if workers * files < CROWDED * limit:
        return ""
    return (
        f"{workers} workers have {files} connections each, and this process may have {limit} files open: "
        f"about {limit // files} workers fit; raise the hard limit (ulimit -Hn, LimitNOFILE) for more"
    )
