"""What the versions of a run are worth, and which of them is the best: fresh episodes, beside training.

At each checkpoint the workers are given evaluate tickets under its version, which they play when they have
nothing else to do; training does not wait. The best version is the latest whose mean greedy return is not
clearly less than the highest: late versions differ by less than the noise of their evaluations, and the
highest of many is so by luck. The final table tells of it, over episodes that took no part in the choice.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from learner.collector import Collector
from learner.evaluation import Cell, evaluation_cells, evaluation_plain
from learner.evaluation_requests import Evaluation
from learner.run_folder import replace_file
from protocol.errors import UserError
from protocol.messages import Arrays
from protocol.specs import EnvironmentSpec

logger = logging.getLogger(__name__)


_CLEARLY = 2.0
"""Combined standard errors between two means that are clearly apart."""


class Score(NamedTuple):
    """What a version is worth."""

    mean: float
    error: float


_COLUMNS = ["update", *(field.name for field in fields(Cell))]


class Selection:
    """The evaluations of one run; those so far stand in its folder's evaluations.csv.

    `arrays_of` returns the weights of a version that was evaluated; `update` is where the run begins.
    """

    def __init__(
        self,
        folder: Path,
        environment: EnvironmentSpec,
        collector: Collector,
        update: int,
        arrays_of: Callable[[int], Arrays],
    ) -> None:
        self._folder, self._environment, self._collector = folder, environment, collector
        self._arrays_of = arrays_of
        self._rows = [row for row in _read(folder) if int(row["update"]) <= update]
        self._scores = _scores(self._rows)
        self._requested: set[int] = set()
        self.wanted = 0
        """Episodes asked for, of all evaluations."""

    @property
    def best(self) -> int | None:
        """Return the best version so far; None before the first evaluation."""
        return _best(self._scores)

    @property
    def kept(self) -> set[int]:
        """Return the versions whose checkpoints must stay: the best, and those under evaluation."""
        return self._requested | ({self.best} if self.best is not None else set())

    def begin(self, version: int, episodes: int) -> None:
        """Have a version evaluated over so many episodes a cell, unless that is done or none are wanted."""
        if episodes and version not in self._requested and version not in self._scores:
            self._requested.add(version)
            self._request(version, episodes)

    def take_in(self, patience_seconds: float = 0.0) -> None:
        """Note an evaluation that is finished, waiting so long for one."""
        while self._requested and (done := self._collector.next_evaluation(patience_seconds)) is not None:
            self._requested.discard(done.version)
            self._note(done.version, self._cells(done))
            patience_seconds = 0.0

    @property
    def under_way(self) -> bool:
        """Say whether an evaluation has not ended."""
        return bool(self._requested)

    def final(self, last: int, episodes: int, patience: Callable[[], float]) -> list[Cell]:
        """Evaluate the best version, or the `last` where none was chosen; keep the cells in evaluation.json.

        `patience` is called again and again meanwhile and returns for how many seconds to listen.
        """
        version = last if self.best is None else self.best
        try:
            arrays = self._arrays_of(version)
        except UserError as error:
            logger.warning("version %d was the best and is gone, the last one is taken: %s", version, error)
            version, arrays = last, self._arrays_of(last)
        self._request(version, episodes, arrays)
        while (done := self._collector.next_evaluation(patience())) is None:
            pass
        cells = self._cells(done)
        plain = {"update": version, **evaluation_plain(cells)}
        replace_file(self._folder / "evaluation.json", json.dumps(plain, indent=1))
        return cells

    def _request(self, version: int, episodes: int, arrays: Arrays | None = None) -> None:
        count = episodes * len(self._environment.evaluate_scenarios)
        self.wanted += count
        self._collector.request_evaluation(version, count, arrays)

    def _cells(self, done: Evaluation) -> list[Cell]:
        played = (
            (self._environment.scenario("evaluate", episode.ticket.number), episode.undiscounted_return)
            for episode in done.episodes
        )
        return evaluation_cells(self._environment.name, played)

    def _note(self, version: int, cells: list[Cell]) -> None:
        rows = [{"update": str(version), **_spelled(cell)} for cell in cells]
        self._scores |= _scores(rows)
        if version in self._scores:
            place = "the best so far" if version == self.best else f"behind version {self.best}"
            mean, error = self._scores[version]
            logger.info("version %d: mean greedy return %.3f ± %.3f, %s", version, mean, error, place)
        self._rows += rows
        try:
            _write(self._folder, self._rows)
        except OSError as error:
            logger.warning("the evaluation of version %d cannot be written: %s", version, error)


def best_version(run: Path) -> int | None:
    """Return the best version of a run's folder by its evaluations, None where there are none."""
    return _best(_scores(_read(run)))


def _best(scores: Mapping[int, Score]) -> int | None:
    if not scores:
        return None
    highest = max(scores.values())

    def as_good(score: Score) -> bool:
        return highest.mean - score.mean <= _CLEARLY * math.hypot(highest.error, score.error)

    return max(version for version, score in scores.items() if as_good(score))


def _scores(rows: Iterable[Mapping[str, str]]) -> dict[int, Score]:
    """Return the mean of the greedy cells by version, and its standard error."""
    cells: dict[int, list[Score]] = {}
    for row in rows:
        if row["greedy"] == "True":
            cells.setdefault(int(row["update"]), []).append(Score(float(row["mean"]), float(row["se"] or 0)))
    scores: dict[int, Score] = {}
    for version, found in cells.items():
        means, errors = np.array(found).T
        scores[version] = Score(float(means.mean()), float(np.linalg.norm(errors)) / len(found))
    return scores


def _spelled(cell: Cell) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in asdict(cell).items()}


def _read(folder: Path) -> list[dict[str, str]]:
    """Return the rows of evaluations.csv. Raises UserError where it is damaged."""
    path = folder / "evaluations.csv"
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        _scores(rows)
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"{path} is damaged: remove it to go on without the evaluations up to now") from None
    return rows


def _write(folder: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    replace_file(folder / "evaluations.csv", text.getvalue())
