"""The best version of a run: chosen by greedy evaluations, remembered over restarts, evaluated once more."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.evaluation_requests import Evaluation
from learner.selection import Selection, best_version
from protocol.errors import UserError
from protocol.messages import Arrays, Episode, Version
from protocol.specs import EnvironmentSpec, Spaces
from protocol.tickets import Ticket

ENVIRONMENT = EnvironmentSpec(
    "toy", {}, Spaces(1, "float32", 2, False, 10), evaluate_scenarios=({}, {"greedy": True})
)


class Fleet:
    """Plays at once what is asked for: `worth` is the return of each version's (sampled, greedy) episodes."""

    def __init__(self, worth: dict[int, tuple[float, float]]) -> None:
        self.worth = worth
        self.asked: list[tuple[int, int]] = []
        self.given: dict[int, Arrays] = {}
        self._done: deque[Evaluation] = deque()
        self._next = 0

    def request_evaluation(self, version: int, episodes: int, arrays: Arrays | None = None) -> range:
        self.asked.append((version, episodes))
        if arrays is not None:
            self.given[version] = arrays
        numbers = range(self._next, self._next + episodes)
        self._next += episodes
        played = tuple(_episode(number, self.worth[version][number % 2]) for number in numbers)
        self._done.append(Evaluation(version, numbers.start, numbers.stop, played))
        return numbers

    def next_evaluation(self, timeout_seconds: float) -> Evaluation | None:
        return self._done.popleft() if self._done else None


def _episode(number: int, value: float) -> Episode:
    one = np.zeros(1, np.float32)
    return Episode(
        "run", "s", Ticket("evaluate", number), Version(1, 0), True, 0.0,
        np.zeros((2, 1), np.float32), np.zeros(1, np.uint8), one + np.float32(value), one,
    )  # fmt: skip


def _selection(folder: Path, fleet: Any, update: int = 0) -> Selection:
    return Selection(folder, ENVIRONMENT, fleet, update, lambda version: {"version": np.array(version)})


def _evaluate(selection: Selection, *versions: int) -> None:
    for version in versions:
        selection.begin(version, 5)
        selection.take_in()


def test_the_best_greedy_return_is_chosen_and_evaluated_again_with_its_own_weights(tmp_path: Path) -> None:
    fleet = Fleet({1: (0.0, 1.0), 2: (0.0, 3.0), 3: (9.0, 2.0)})
    selection = _selection(tmp_path, fleet)
    _evaluate(selection, 1, 2, 3)
    assert selection.best == 2 and selection.kept == {2} and not selection.under_way
    cells = selection.final(3, 7, lambda: 0.0)
    assert fleet.asked == [(1, 10), (2, 10), (3, 10), (2, 14)]
    assert fleet.given == {2: {"version": np.array(2)}}
    assert [(cell.greedy, cell.mean, cell.episodes) for cell in cells] == [(False, 0.0, 7), (True, 3.0, 7)]
    kept = json.loads((tmp_path / "evaluation.json").read_text())
    assert kept["update"] == 2
    assert [cell["greedy"] for name in ("returns", "sampled_returns") for cell in kept[name]] == [True, False]
    assert best_version(tmp_path) == 2


@pytest.mark.parametrize(("later", "best"), [(2.0, 2), (0.6, 2), (0.4, 1), (0.0, 1)])
def test_the_latest_that_is_not_clearly_less_than_the_highest_counts(
    tmp_path: Path, later: float, best: int
) -> None:
    header = "update,environment,red,steps,mean,se,episodes,greedy"
    cells = [(1, 1.0, 0.6, True), (1, 2.0, 0.8, True), (1, 9.0, 9.0, False)]  # greedy: 1.5 ± 0.5
    cells += [(2, later, 0.0, True), (2, -9.0, 9.0, False)]
    rows = [f"{version},toy,,0,{mean},{se},5,{greedy}" for version, mean, se, greedy in cells]
    (tmp_path / "evaluations.csv").write_text("\n".join([header, *rows]))
    assert best_version(tmp_path) == best


def test_a_version_under_evaluation_keeps_its_checkpoint(tmp_path: Path) -> None:
    selection = _selection(tmp_path, Fleet({1: (0.0, 1.0), 2: (0.0, 0.0)}))
    _evaluate(selection, 1)
    selection.begin(2, 5)
    assert selection.kept == {1, 2} and selection.under_way
    selection.take_in()
    assert selection.kept == {1} and not selection.under_way


def test_no_version_is_evaluated_twice_and_none_where_none_is_wanted(tmp_path: Path) -> None:
    fleet = Fleet({1: (0.0, 1.0), 2: (0.0, 2.0)})
    selection = _selection(tmp_path, fleet)
    _evaluate(selection, 1, 1)
    selection.begin(2, 0)
    assert fleet.asked == [(1, 10)] and not selection.under_way


def test_a_restart_remembers_what_came_before_it_and_forgets_what_was_rolled_back(tmp_path: Path) -> None:
    worth = {1: (0.0, 1.0), 2: (0.0, 3.0), 3: (0.0, 2.0)}
    _evaluate(_selection(tmp_path, Fleet(worth)), 1, 2)
    assert _selection(tmp_path, Fleet(worth), 2).best == 2
    again = _selection(tmp_path, Fleet(worth), 1)
    assert again.best == 1
    _evaluate(again, 3)
    assert best_version(tmp_path) == 3  # version 2 is of a lineage that did not survive


def test_the_last_version_counts_where_none_was_chosen(tmp_path: Path) -> None:
    fleet = Fleet({4: (1.0, 1.0)})
    _selection(tmp_path, fleet).final(4, 1, lambda: 0.0)
    assert fleet.asked == [(4, 2)] and best_version(tmp_path) is None


def test_the_last_version_counts_where_the_weights_of_the_best_are_gone(tmp_path: Path) -> None:
    def arrays_of(version: int) -> Arrays:
        if version == 1:
            raise UserError("its checkpoint is damaged")
        return {}

    fleet = Fleet({1: (0.0, 9.0), 2: (0.0, 1.0)})
    selection = Selection(tmp_path, ENVIRONMENT, fleet, 0, arrays_of)  # type: ignore[arg-type]  # stands in
    _evaluate(selection, 1, 2)
    selection.final(2, 1, lambda: 0.0)
    assert fleet.asked[-1] == (2, 2)


def test_damaged_evaluations_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "evaluations.csv").write_text("update,greedy\nnonsense,True\n")
    with pytest.raises(UserError, match=r"evaluations\.csv is damaged"):
        best_version(tmp_path)
