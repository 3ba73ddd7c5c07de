"""`fleet evaluate` in the original simulator, with a stand-in that has the marks of the real one."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deploy import playing
from deploy.app import run_command
from deploy.crosscheck import compare, comparison_plain, comparison_table
from deploy.exits import Exit
from deploy.playable import Playable
from deploy.playing import play_returns
from deploy.progress import EvaluationDisplay
from learner.checkpoints import load
from learner.evaluation import Cell
from protocol.errors import FleetError
from tests.deploy.made_checkpoint import made_checkpoint
from tests.fake_cyborg import challenge_2, forget_cyborg, other_challenge

Evaluate = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """Install a CybORG with the current rules; return where."""
    real, path = forget_cyborg(), sys.path[:]
    folder = challenge_2(tmp_path / "cyborg")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path[:] = path
    forget_cyborg()
    sys.modules.update(real)


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Run `fleet evaluate`, in this process, of these settings: its exit status, stdout and stderr."""
    monkeypatch.setattr(playing, "usable_cores", lambda: 1)

    def run(told: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
        folder = made_checkpoint(tmp_path / "checkpoint", **told)
        status = run_command(["evaluate", str(folder), *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.usefixtures("installed")
def test_both_simulators_are_measured_and_compared(evaluate: Evaluate, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    cells = ("--episode-length", "4,7", "--red-agent", "b_line,sleep")
    status, out, err = evaluate({}, "--env", "cyborg", "--episodes", "3", "--json", str(file), *cells)
    assert status == Exit.OK
    assert "2,000 episodes each in the embedded simulator, 3 in CybORG" in " ".join(out.split())
    assert err == "fleet: note: it never trained against sleep\n"
    plain = json.loads(file.read_text())
    assert plain["rules"] == "current" and len(plain["differences"]) == 4
    for name, episodes in (("embedded", 2000), ("cyborg", 3)):
        rows = plain[name]["returns"]
        assert [(row["red"], row["steps"], row["episodes"]) for row in rows] == [
            (red, steps, episodes) for red in ("b_line", "sleep") for steps in (4, 7)
        ]
    assert all(0 > row["mean"] > -row["steps"] for row in plain["cyborg"]["returns"])


@pytest.mark.usefixtures("installed")
def test_what_was_trained_in_either_is_evaluated_in_either(evaluate: Evaluate) -> None:
    few = ("--episodes", "2", "--episode-length", "3", "--red-agent", "b_line")
    for told, arguments, title in (
        ({"environment": "cyborg"}, (), "3 steps"),
        ({"environment": "cyborg"}, ("--env", "cyborg"), "embedded"),
        ({"environment": "cyborg"}, ("--env", "cage2"), "3 steps"),
        ({}, ("--env", "cage2", "--rules", "leaderboard"), "3 steps"),
        ({"rules": "leaderboard"}, ("--env", "cyborg", "--rules", "current"), "embedded"),
    ):
        status, out, err = evaluate(told, *arguments, *few)
        assert (status, err) == (Exit.OK, "") and title in out


def test_a_simulator_that_cannot_play_it_is_told_in_one_line(
    installed: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    def refusal(told: dict[str, Any], name: str = "cyborg") -> str:
        status, out, err = evaluate(told, "--env", name)
        assert status == Exit.USAGE and not out and err.count("\n") == 1
        return err

    assert "what was trained in cage2 is evaluated in cage2 or cyborg" in refusal({}, "CartPole-v1")
    assert "what was trained in CartPole-v1 is evaluated in CartPole-v1" in refusal(
        {"environment": "CartPole-v1"}
    )
    status, _, err = evaluate({}, "--rules", "newest")
    assert status == Exit.USAGE and "it must be one of current, leaderboard" in err
    assert evaluate({"environment": "CartPole-v1"}, "--env", "CartPole-v1", "--episodes", "2")[0] == Exit.OK
    status, _, err = evaluate({"environment": "CartPole-v1"}, "--rules", "current")
    assert status == Exit.USAGE and "--rules belongs to cage2" in err
    assert "CybORG tells no true state" in refusal({"observation": "state"})
    assert "has the current rules, not the leaderboard ones: check out commit 606813b" in refusal(
        {"rules": "leaderboard"}
    )
    forget_cyborg()
    sys.path[0] = str(other_challenge(tmp_path / "other", 4))
    assert "is that of CAGE Challenge 4, not 2" in refusal({})


def test_training_in_a_cyborg_of_the_wrong_rules_is_refused_before_anything_starts(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["train", "--env", "cyborg", "--rules", "leaderboard"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "has the current rules, not the leaderboard ones" in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_tells_what_was_measured(installed: Path, tmp_path: Path) -> None:
    """The whole group hears it, as of a terminal, and hears it twice, as of `timeout`."""
    folder = made_checkpoint(tmp_path / "checkpoint", environment="cyborg")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "deploy",
            "evaluate",
            str(folder),
            "--episodes",
            "1000000",
            "--json",
            "x.json",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("cyborg: ") and "steps/s" in line and line.endswith(" left\n")
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED, err
    assert "fleet: interrupted after " in err and "of 6,000,000 episodes" in err and "Traceback" not in err
    assert "100 steps" in out
    rows = json.loads((tmp_path / "x.json").read_text())["returns"]
    told = err.split("fleet: interrupted after ")[1].split(" of ")[0]
    assert sum(row["episodes"] for row in rows) == int(told.replace(",", "")) > 0


def test_returns_do_not_depend_on_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    playable = Playable.of(load(made_checkpoint(tmp_path / "checkpoint")))
    monkeypatch.setattr(playing, "_TASK_EPISODES", 200)
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(playing, "usable_cores", lambda cores=cores: cores)
        found.append(dict(play_returns(playable, 700)))
    assert found[0] == found[1] and found[0].keys() == set(range(700))


def test_a_killed_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    playable = Playable.of(load(made_checkpoint(tmp_path / "checkpoint")))
    monkeypatch.setattr(playing, "usable_cores", lambda: 2)
    returns = play_returns(playable, 1_000_000)
    next(returns)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(FleetError, match="was killed: is there enough memory"):
        for _ in returns:
            pass


def test_differences_are_told_in_combined_standard_errors() -> None:
    def cell(mean: float, se: float | None, red: str = "b_line") -> Cell:
        return Cell("cage2", red, 30, mean, se, 100, True)

    pairs = compare(
        [cell(0.0, 0.0, "sleep"), cell(-4.0, 0.3), cell(-6.0, 0.1, "meander")],
        [cell(-3.0, 0.4), cell(0.0, 0.0, "sleep"), cell(-5.0, None, "meander")],
    )
    assert [pair.difference for pair in pairs] == [1.0, 0.0, 1.0]
    assert [pair.standard_errors for pair in pairs] == [pytest.approx(2.0), None, None]
    assert comparison_plain(pairs, "current")["differences"][1] == {
        "difference": 0.0,
        "standard_errors": None,
    }
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_table(pairs, "current"))
    assert isinstance(console.file, io.StringIO)
    assert "-4.00 ± 0.30 │ -3.00 ± 0.40 │ +1.00 │  +2.0" in console.file.getvalue()


def test_the_display_tells_rate_and_time_left() -> None:
    display = EvaluationDisplay("cyborg", 41, 4100, Console(file=io.StringIO()))
    for _ in range(11):
        display.ended(100)
    assert display.line(2.0) == "cyborg: 11 of 41 episodes, 500 steps/s, 0:06 left"
