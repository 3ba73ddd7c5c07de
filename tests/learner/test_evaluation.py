import json

import numpy as np
import pytest
from rich.console import Console

from learner.evaluation import Cell, evaluation_cells, evaluation_plain, evaluation_table


def test_episodes_are_gathered_by_red_agent_and_length() -> None:
    returns = np.random.default_rng(0).normal(-14, 5, 90)
    scenarios = [
        {"red_agent": red, "episode_length": steps}
        for red in ("b_line", "meander")
        for steps in (30, 50, 100)
    ]
    episodes = [(scenarios[i % 6], float(value)) for i, value in enumerate(returns)]
    cells = evaluation_cells("cage2", episodes)
    assert [(cell.red, cell.steps) for cell in cells] == [
        (scenario["red_agent"], scenario["episode_length"]) for scenario in scenarios
    ]
    assert cells[1].mean == pytest.approx(returns[1::6].mean())
    assert cells[1].se == pytest.approx(np.sqrt(np.var(returns[1::6], ddof=1) / 15))
    plain = json.loads(json.dumps(evaluation_plain(cells)))
    assert len(plain["returns"]) == 6
    assert plain["returns"][0].keys() == {"red", "steps", "mean", "se", "episodes", "greedy"}
    assert plain["returns"][0]["episodes"] == 15


def test_an_environment_without_red_agents_is_one_cell() -> None:
    (cell,) = evaluation_cells("CartPole-v1", [({}, 500.0), ({}, 400.0)])
    told = {"environment": "CartPole-v1", "mean": 450.0, "se": 50.0, "episodes": 2, "greedy": False}
    assert cell.to_plain() == told
    (single,) = evaluation_cells("CartPole-v1", [({}, 500.0)])
    assert single.se is None


def test_the_caption_counts_one_or_more_episodes() -> None:
    def caption(*counts: int) -> str:
        cells = [Cell("cage2", "b_line", 30 + n, -3.5, None, count) for n, count in enumerate(counts)]
        return str(evaluation_table(cells).caption)

    assert caption(1) == "1 episode each"
    assert caption(2000) == "2,000 episodes each"
    assert caption(3, 1) == "1 to 3 episodes each"


def test_the_table_has_a_row_for_each_agent_and_a_column_for_each_length() -> None:
    cells = [
        Cell("cage2", "b_line", 100, -13.04, 0.124, 1000),
        Cell("cage2", "b_line", 30, -3.5, 0.05, 1000),
        Cell("cage2", "meander", 30, -5.456, None, 1000),
        Cell("cage2", "meander", 30, -5.321, 0.02, 1000, greedy=True),
    ]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(evaluation_table(cells))
    text = capture.get()
    assert "1,000 episodes" in text
    assert text.index("30 steps") < text.index("100 steps")
    greedy = next(line for line in text.splitlines() if "greedy" in line)
    assert "Meander" in greedy and "-5.32 ± 0.02" in greedy
    lines = {name: next(line for line in text.splitlines() if name in line) for name in ("B_line", "Meander")}
    assert "-3.50 ± 0.05" in lines["B_line"] and "-13.04 ± 0.12" in lines["B_line"]
    assert "-5.46" in lines["Meander"] and "±" not in lines["Meander"]
