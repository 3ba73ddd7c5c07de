from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from deploy.app import run_command
from deploy.exits import Exit
from deploy.runs import find_sweep
from deploy.settings import Settings, resolve
from deploy.sweep import results, study, trial
from deploy.sweep.plan import Plan, Search, locked, read_plan, write_plan
from deploy.sweep.score import checkpoint_scores, final_returns, over_seeds, score
from deploy.sweep.space import Choices, Numbers, parse_space, usual_values
from deploy.sweep.study import Sweep
from deploy.sweep.training import Training
from learner.config import PPOConfig
from protocol.errors import FleetError, UserError
from tests.end_to_end.fleet_processes import Fleet

LEARNING_RATES = "[space]\nlearning_rate = [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]\n"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


def test_a_space_holds_numbers_whole_numbers_and_lists() -> None:
    text = """[space]
    learning_rate = { low = 3e-4, high = 5e-3, log = true }
    epochs = { low = 2, high = 8, step = 2 }
    hidden = [[64, 64], "128"]
    normalise-advantages = [true, false]
    """
    assert parse_space(text, Path("s.toml")) == (
        Numbers("learning_rate", 3e-4, 5e-3, None, log=True, whole=False),
        Numbers("epochs", 2, 8, 2, log=False, whole=True),
        Choices("hidden", ("64,64", "128")),
        Choices("normalise_advantages", (True, False)),
    )


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("learning_rat = [1, 2]", "did you mean learning_rate"),
        ("total_episodes = [100, 200]", "cannot be swept"),
        ("seed = [1, 2]", "cannot be swept"),
        ("env = ['cage2', 'cyborg']", "cannot be swept"),
        ("gae-lambda = [0.9, 1]\ngae_lambda = [0.9, 1]", "is there twice"),
        ("gamma = 0.9", "is 0.9: give a list of values"),
        ("gamma = [0.9]", "at least two values"),
        ("gamma = [0.9, 0.9]", "each once"),
        ("gamma = [0.9, { a = 1 }]", "give text, a number"),
        ("gamma = [0.9, 1.5]", "--gamma is 1.5; it must be from 0 to 1"),
        ("gamma = { low = 0.99, high = 0.9 }", "low must be less"),
        ("gamma = { low = 0.9, high = 1.1 }", "--gamma is 1.1"),
        ("gamma = { low = 0.9 }", "needs both low and high"),
        ("gamma = { low = 0.9, high = 1, stepp = 1 }", "has 'stepp'"),
        ("gamma = { low = 0.9, high = 1.0, step = 0.5 }", "step is 0.5"),
        ("gamma = { low = 0, high = 1, log = true }", "low must be more than 0"),
        ("gamma = { low = 0, high = 1, log = 1 }", "true or false"),
        ("epochs = { low = 1.5, high = 3 }", "must be a whole number"),
        ("hidden = { low = 1, high = 3 }", "is no number"),
        ("activation = ['relu', 'gelu']", "choose from relu, tanh"),
        ("observation = ['bits', 'nothing']", "observation"),
        ("gamma = [0.9, 0.99]\n[other]", "'other' is not understood"),
        ("= 3", "not valid TOML"),
        ("", "nothing to search"),
    ],
)
def test_a_bad_space_is_one_line(
    entry: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(f"[space]\n{entry}\n")
    assert run_command(["sweep", "s.toml", "--name", "s"]) == Exit.USAGE
    printed = capsys.readouterr().err
    assert told in printed and "s.toml" in printed and printed.count("\n") == 1
    assert not Path("runs/s").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give a SPACE.toml, or --resume"),
        (["no.toml"], "cannot be read"),
        (["s.toml", "--trials", "0"], "--trials is 0"),
        (["s.toml", "--pruner", "magic"], "choose from median, hyperband, none"),
        (["s.toml", "--learning-rate", "0.1"], "leave one out"),
        (["s.toml", "--evaluation-episodes", "0"], "--evaluation-episodes is 0"),
        (["s.toml", "--selection-episodes", "0"], "add --pruner none"),
        (["s.toml", "--env", "NoSuchThing-v0"], "NoSuchThing"),
        (["--resume", "none"], "no sweep 'none'"),
        (["--resume", "none", "--seeds", "2"], "only --trials, --parallel"),
        (["s.toml", "--name", "taken"], "runs/taken exists already: --resume taken goes on with it"),
        (
            ["s.toml", "--name", "first"],
            "it is a training, and fleet train --resume first goes on with it, another --name begins anew",
        ),
        (
            ["--resume", "first"],
            "runs/first is a training, not a sweep: fleet train --resume first goes on with it",
        ),
    ],
)
def test_a_bad_command_is_one_line(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(LEARNING_RATES)
    Path("runs/taken").mkdir(parents=True)
    Path("runs/taken/sweep.json").touch()
    Path("runs/first").mkdir()
    Path("runs/first/config.toml").touch()
    assert run_command(["sweep", *arguments]) == Exit.USAGE
    printed = capsys.readouterr().err
    assert told in printed and printed.count("\n") == 1


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*told: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deploy.sweep.plan.replace_file", full)
    Path("s.toml").write_text(LEARNING_RATES)
    assert run_command(["sweep", "s.toml", "--name", "s"]) == Exit.FAILED
    printed = capsys.readouterr().err
    assert "in runs: make room, then try again" in printed and printed.count("\n") == 1
    assert not Path("runs/s").exists()


def test_without_optuna_one_line_says_how_to_get_it() -> None:
    program = (
        "import sys; sys.modules['optuna'] = None; "
        "from deploy.app import run_command; sys.exit(run_command(['sweep', 's.toml']))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (Exit.USAGE, 1)
    assert "needs optuna: in a clone, pip install --editable '.[sweep]'" in result.stderr


def test_the_defaults_are_tried_first_where_they_lie_in_the_space() -> None:
    space = parse_space("[space]\nhidden = ['64,64', '32']\nepochs = { low = 2, high = 8, step = 2 }", Path())
    assert usual_values(space, {"hidden": (64, 64), "epochs": 4}) == {"hidden": "64,64", "epochs": 4}
    assert usual_values(space, {"hidden": (64, 64), "epochs": 5}) is None
    assert usual_values(space, {"hidden": (64,), "epochs": 4}) is None


def test_cells_weigh_alike_and_the_worst_seed_counts(tmp_path: Path) -> None:
    assert score({"b_line/30": -3.4, "meander/100": -15.5}) == pytest.approx(-1)
    assert score({"b_line/30": -6.8, "meander/100": -15.5}) == pytest.approx(-1.5)
    assert score({"return": 500.0}) == 500
    assert over_seeds([1, 2, 6], "worst") == 1 and over_seeds([1, 2, 6], "mean") == 3
    rows = "update,environment,red,steps,mean,se,episodes,greedy\n"
    rows += (
        "2,cage2,b_line,30,-34,1,9,False\n2,cage2,b_line,30,-6.8,1,9,True\n4,cage2,b_line,30,-3.4,1,9,True\n"
    )
    (tmp_path / "evaluations.csv").write_text(rows)
    assert checkpoint_scores(tmp_path) == pytest.approx({2: -2, 4: -1})
    cells = [{"red": "b_line", "steps": 30, "mean": -4.0}, {"environment": "CartPole-v1", "mean": 9.0}]
    (tmp_path / "evaluation.json").write_text(json.dumps({"returns": cells}))
    assert final_returns(tmp_path) == {"b_line/30": -4, "return": 9}


# The search, with trainings that are played


class PlayedTraining:
    """A training that gives `worth(settings)` times its share done, an evaluation at each look."""

    def __init__(
        self, worth: Callable[[Settings], float], folder: Path, name: str, settings: Settings
    ) -> None:
        self.run, self.updates = folder / "runs" / name, settings.run.updates
        self._worth, self._status = worth(settings), None if worth(settings) else 1
        self._done = 0
        self.run.mkdir(parents=True, exist_ok=True)

    def poll(self) -> int | None:
        if self._done >= self.updates and self._status is None:
            cell = {"mean": self._worth}
            (self.run / "evaluation.json").write_text(json.dumps({"returns": [cell]}))
            return 0
        return self._status

    def checkpoint_scores(self) -> dict[int, float]:
        self._done += 1
        return {update: self._worth * update / self.updates for update in range(1, self._done + 1)}

    def interrupt(self) -> None:
        self._status = Exit.INTERRUPTED

    def reason(self, status: int) -> str:
        return f"ended with {status}"

    def wait(self) -> None:
        pass

    kill = wait


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    """Return what begins a sweep of CartPole whose trainings are worth what a function says."""

    def begin(worth: Callable[[Settings], float], space: str = LEARNING_RATES, **search: Any) -> Sweep:
        base = resolve({"environment": "CartPole-v1", "total_episodes": "200"})
        plan = Plan(tmp_path, Search(**search), parse_space(space, Path("s.toml")), base)
        write_plan(plan, space, Path("s.toml"))
        monkeypatch.setattr(trial, "Training", lambda *told: PlayedTraining(worth, *told))
        return Sweep(
            plan, lambda running: None, lambda ended: results.write(made[0].study, plan), lambda: False
        )

    made: list[Sweep] = []

    def keep(*told: Any, **search: Any) -> Sweep:
        made[:] = [begin(*told, **search)]
        return made[0]

    monkeypatch.setattr(study, "_POLL_SECONDS", 0)
    return keep


def by_state(searched: Sweep) -> Mapping[TrialState, list[FrozenTrial]]:
    trials = searched.study.get_trials()
    return {state: [t for t in trials if t.state == state] for state in TrialState}


def test_poor_trials_are_pruned_and_the_best_is_kept(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    searched = sweep(lambda told: told.ppo.learning_rate, trials=8, startup_trials=2)
    assert searched.run()
    found = by_state(searched)
    assert found[TrialState.PRUNED] and len(found[TrialState.COMPLETE]) >= 2
    for pruned in found[TrialState.PRUNED]:
        assert len(pruned.intermediate_values) < 10 and "of a training" in pruned.user_attrs["reason"]
    first = results.best(searched.study)
    assert first and first.value == max(trial.value or 0 for trial in found[TrialState.COMPLETE])
    assert found[TrialState.COMPLETE][0].params["learning_rate"] == 0.003  # CartPole's default, tried first
    assert resolve({}, tmp_path / "best.toml").ppo.learning_rate == first.value
    assert resolve({}, tmp_path / "best.toml").run.seed == 1
    assert results.importances(searched.study) == {"learning_rate": 1.0}
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert len(rows) == 9 and rows[0].startswith(
        "trial,state,score,learning_rate,mean,worst,score of seed 1000000000,"
    )


@pytest.mark.parametrize("pruner", ["hyperband", "none"])
def test_other_pruners(sweep: Callable[..., Sweep], pruner: str) -> None:
    searched = sweep(lambda told: told.ppo.learning_rate, trials=12, startup_trials=2, pruner=pruner)
    assert searched.run()
    assert bool(by_state(searched)[TrialState.PRUNED]) == (pruner == "hyperband")


def test_a_trial_is_worth_its_worst_seed(sweep: Callable[..., Sweep]) -> None:
    searched = sweep(lambda told: told.run.seed - 999_999_999.0, trials=2, seeds=3, parallel=2)
    assert searched.run()
    plain = results.to_plain(searched.study, searched._plan)
    assert plain["training_seeds"] == [1_000_000_000, 1_000_000_002, 1_000_000_004]
    assert [row["score"] for row in plain["trials"]] == [1, 1]
    assert (plain["best"]["mean"], plain["best"]["worst"]) == (3, 1)
    assert list(plain["best"]["scores"].values()) == [1, 3, 5] and plain["best"]["returns"] == {"return": 3}


def test_a_failing_trial_is_noted_and_all_failing_ends_the_sweep(sweep: Callable[..., Sweep]) -> None:
    searched = sweep(lambda told: (told.ppo.learning_rate < 0.004) * 1.0, trials=8)
    assert searched.run()
    failed = by_state(searched)[TrialState.FAIL]
    assert failed and all(trial.user_attrs["reason"] == "ended with 1" for trial in failed)
    assert len(searched.study.get_trials()) == 8


def test_all_trials_failing_end_the_sweep(sweep: Callable[..., Sweep]) -> None:
    searched = sweep(lambda told: 0.0, trials=8)
    with pytest.raises(FleetError, match=r"every trial has failed \(3\), the last because: ended with 1"):
        searched.run()


def test_a_return_that_is_no_number_fails_its_trial(sweep: Callable[..., Sweep]) -> None:
    searched = sweep(lambda told: math.nan if told.ppo.learning_rate == 0.003 else 1.0, trials=3)
    assert searched.run()
    [failed] = by_state(searched)[TrialState.FAIL]
    assert failed.user_attrs["reason"].endswith("the mean return is nan")


def test_ctrl_c_ends_trials_and_tells_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def worth(settings: Settings) -> float:
        if not begun:
            begun.append(settings)
            signal.raise_signal(signal.SIGINT)
        return 1.0

    begun: list[Settings] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "_POLL_SECONDS", 0)
    monkeypatch.setattr(trial, "Training", lambda *told: PlayedTraining(worth, *told))
    Path("s.toml").write_text(LEARNING_RATES)
    command = ["sweep", "s.toml", "--env", "CartPole-v1", "--name", "s", "--trials", "2", "--parallel", "2"]
    command += ["--total-episodes", "200"]
    assert run_command(command) == Exit.INTERRUPTED
    printed = capsys.readouterr()
    assert "Stopped; fleet sweep --resume s goes on" in printed.err and "complete" not in printed.err
    assert run_command(["sweep", "--resume", "s", "--json", "s.json"]) == Exit.OK
    plain = json.loads(Path("s.json").read_text())
    assert [row["state"] for row in plain["trials"]] == ["complete", "complete"]
    assert "fleet train --config runs/s/best.toml" in capsys.readouterr().err


def test_a_journal_cut_short_goes_on(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    assert sweep(lambda told: 1.0, trials=2).run()
    with (tmp_path / "journal.log").open("a") as journal:
        journal.write('{"op_code": 4, "worker')
    (tmp_path / "journal.log.lock").symlink_to(tmp_path / "journal.log")
    searched = sweep(lambda told: 1.0, trials=3)
    assert searched.run() and len(by_state(searched)[TrialState.COMPLETE]) == 3


def test_trials_at_a_time_share_the_cores(tmp_path: Path) -> None:
    base = resolve({"environment": "CartPole-v1", "total_episodes": 400})
    space = parse_space(LEARNING_RATES, Path())
    plan = Plan(tmp_path, Search(parallel=2), space, base)
    write_plan(plan, LEARNING_RATES, Path())
    told = plan.settings({"learning_rate": 0.002}, seed=7, cores=8)
    assert (told.launch.workers, told.ppo.torch_threads, told.run.seed) == (4, 1, 7)
    assert told.run.checkpoint_every == 2 and told.ppo.learning_rate == 0.002
    assert plan.settings({}, seed=7, cores=1).launch.workers == 1
    alone = Plan(tmp_path, Search(), space, base).settings({}, seed=7, cores=8)
    assert (alone.launch.workers, alone.ppo.torch_threads) == (0, PPOConfig().torch_threads)
    assert read_plan(tmp_path) == plan


def test_a_failing_training_tells_its_last_line(tmp_path: Path) -> None:
    broken = resolve({"environment": "CartPole-v1", "allow_env": "no_such_module"})
    training = Training(tmp_path, "t", broken)
    training.wait()
    status = training.poll()
    assert status == Exit.USAGE and "no_such_module" in training.reason(status)
    assert "out of memory" not in training.reason(status) and "memory runs out" in training.reason(-9)


def test_killed_resumed_and_pruned_for_real(fleet: Fleet) -> None:
    """Killed in the first trial, which nobody else may go on with meanwhile; the second is pruned."""
    space = fleet.folder / "space.toml"
    space.write_text("[space]\nlearning_rate = [0.003, 1e-9]\n")
    options = ["--env=CartPole-v1", "--total-episodes=160", "--final-learning-rate=0", "--workers=1"]
    options += ["--step-delay=constant:5ms"]  # so that it is seen at work
    options += ["--selection-episodes=10", "--evaluation-episodes=10", "--startup-trials=1"]
    killed = fleet.start("sweep", space, "--trials", 2, "--name", "s", *options)
    folder = fleet.folder / "runs" / "s"
    run = folder / "runs" / "trial-0000-seed-1000000000"
    fleet.wait_until(lambda: (run / "evaluations.csv").exists(), "a checkpoint was evaluated")
    with pytest.raises(UserError, match="another sweep is at work"), locked(folder):
        pass
    killed.kill()
    killed.wait()
    with locked(folder):  # the search itself would try what went well again
        study.open_study(read_plan(folder)).enqueue_trial({"learning_rate": 1e-9})

    plain = fleet.json("sweep", "--resume", "s")
    assert (run / "incarnation").read_text().endswith(" 2\n")
    complete, pruned = plain["trials"]
    assert (complete["state"], pruned["state"]) == ("complete", "pruned")
    assert complete["values"] == {"learning_rate": 0.003} and complete["score"] > pruned["score"]
    printed = fleet.output(fleet.processes[-1])
    assert "trial 0 complete, score" in printed and "trial 1 pruned, score" in printed
    assert resolve({}, folder / "best.toml").ppo.learning_rate == 0.003
    log = (folder / "trials" / "trial-0001-seed-1000000000.log").read_text()
    assert "--resume trial-0001-seed-1000000000 goes on" in log  # ended as by Ctrl-C, with a checkpoint
    assert find_sweep(str(folder)) == folder
