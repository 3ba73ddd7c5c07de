"""An exported agent against the policy it was exported from, and in the challenge's own evaluation."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.app import run_command
from deploy.exits import Exit
from deploy.export.blue_agent import History
from deploy.playable import Playable
from learner.checkpoints import load
from protocol.specs import without_greedy
from protocol.tickets import Ticket, environment_seed
from rollout_worker.environments.cage2 import defender_view
from rollout_worker.environments.cage2.options import HISTORY_PARTS, HISTORY_SIZE
from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.slots import Cage2Slots
from rollout_worker.player import Step
from rollout_worker.rollout import play
from tests.deploy.made_checkpoint import made_checkpoint
from tests.fake_cyborg import challenge_2, write_package

SIGHTS: list[dict[str, Any]] = [
    {},
    {"observation": "bits", "actions": "full", "normalised": True},
    {"observation": "scans+decoys", "actions": "full-masked", "activation": "tanh"},
    {"actions": "compact-without-analyse", "rules": "leaderboard"},
    {"observation": "bits+activities+actions", "actions": "compact-unmasked"},
]
INSTALLED = find_spec("CybORG") is not None
HOSTS = st.dictionaries(st.integers(0, 12), st.booleans(), max_size=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return exported(tmp_path, {})


def exported(place: Path, sight: dict[str, Any]) -> Path:
    made_checkpoint(place / "checkpoint", **sight)
    assert run_command(["export", str(place / "checkpoint"), str(place / "agent")]) == Exit.OK
    return place / "agent"


def agent_in(folder: Path, **options: Any) -> Any:
    """Return an agent of the module that was exported, not of the one it is a copy of."""
    spec = spec_from_file_location(f"blue_agent_{folder.parent.name}", folder / "blue_agent.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BlueAgent(**options)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 144), HOSTS, st.integers(0, 2**26)), max_size=30))
def test_the_history_is_the_compiled_one_at_every_step(steps: list[tuple[int, dict[int, bool], int]]) -> None:
    ours, theirs = History(), np.zeros(defender_view.VIEW_SIZE, np.uint8)
    defender_view.reset_view(theirs)
    for action, active, marks in [(0, {}, 0), *steps]:
        bits = np.zeros((13, 4), np.uint8)
        bits[:, 2:] = np.array([marks >> bit & 1 for bit in range(26)]).reshape(13, 2)
        for host, exploit in active.items():
            bits[host, :2] = 1, exploit
        ours.update(action, bits.ravel().tolist())
        defender_view.update_view(theirs, bits.ravel(), action)
        shown = np.zeros(defender_view.WIDE_VIEW_WIDTH, np.uint8)
        defender_view.write_view(theirs, bits.ravel(), shown)
        parts = ours.parts(bits.ravel().tolist())
        assert {name: len(part) for name, part in parts.items()} == HISTORY_PARTS
        assert [value for part in parts.values() for value in part] == shown[:HISTORY_SIZE].tolist()
        assert ours.legal(True) + ours.legal(False) == (shown[HISTORY_SIZE:] == 1).tolist()
        for compact in range(28, 37):
            assert ours.translated(compact) == defender_view.translate_action(theirs, compact)


def test_compact_actions_are_the_compiled_ones_in_an_episode_s_first_step() -> None:
    view = np.zeros(defender_view.VIEW_SIZE, np.uint8)
    defender_view.reset_view(view)
    for compact in range(37):
        assert History().translated(compact) == defender_view.translate_action(view, compact)


@pytest.mark.parametrize("sight", SIGHTS, ids=str)
def test_it_plays_the_episodes_that_the_policy_plays(sight: dict[str, Any], tmp_path: Path) -> None:
    agent = agent_in(exported(tmp_path, sight))
    playable = Playable.of(load(tmp_path / "checkpoint"))
    environment = playable.environment
    bare = Cage2Slots(1, Cage2Options(rules=environment.options["rules"]))
    tickets = [Ticket("evaluate", number) for number in range(6, 12)]
    taken: dict[int, list[int]] = {ticket.number: [] for ticket in tickets}

    def note(step: Step) -> None:
        row = step.environments.rows[step.slot]  # type: ignore[attr-defined]  # those of the embedded one
        taken[step.ticket.number].append(int(row["blue_action"]))

    episodes = play(
        environment, playable.policy, playable.arrays, playable.seed, tickets, slots=2, on_step=note
    )
    returns = {episode.ticket.number: episode.rewards.tolist() for episode in episodes}
    for ticket in tickets:
        assert replayed(agent, bare, playable, ticket) == (taken[ticket.number], returns[ticket.number])


def replayed(
    agent: Any, bare: Cage2Slots, playable: Playable, ticket: Ticket
) -> tuple[list[int], list[float]]:
    """Return the actions of an exported agent, and the rewards, in the episode of a ticket."""
    scenario, _ = without_greedy(playable.environment.scenario("evaluate", ticket.number))
    zero, seed = np.zeros(1, np.int64), environment_seed(playable.seed, ticket)
    observation, actions, rewards = bare.reset(zero, np.array([seed], np.uint64), [scenario]), [], []
    over = False
    while not over:
        actions.append(agent.get_action(observation[0], 145))
        observation, reward, _, truncated = bare.step(zero, np.array([actions[-1]]))
        rewards.append(float(reward[0]))
        over = bool(truncated[0])
    agent.end_episode()
    return actions, rewards


def test_it_needs_numpy_alone(folder: Path, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "before = set(sys.modules)\n"
        "from blue_agent import BlueAgent\n"
        "agent = BlueAgent()\n"
        "print([agent.get_action([0] * 52, 145) for _ in range(3)])\n"
        "agent.train(None); agent.set_initial_values(145, [0] * 52); agent.end_episode()\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(new & {'torch', 'numba', 'gymnasium', 'protocol', 'rollout_worker', 'learner', 'deploy'})"
    )
    told = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert told.stdout.endswith("set()\n")


def test_it_draws_actions_on_demand_the_same_from_the_same_seed(folder: Path) -> None:
    def drawn(seed: int) -> list[int]:
        agent = agent_in(folder, sampled=True, seed=seed)
        return [agent.get_action(np.zeros(52), 145) for _ in range(30)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) > 3


def test_another_observation_or_another_number_of_actions_is_refused(folder: Path) -> None:
    agent = agent_in(folder)
    for observation, actions in (([0] * 53, 145), ([0] * 52, 41)):
        with pytest.raises(ValueError, match="through ChallengeWrapper"):
            agent.get_action(observation, actions)


def test_what_cannot_be_exported_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_checkpoint(tmp_path / "state", observation="state")
    made_checkpoint(tmp_path / "pole", environment="CartPole-v1")
    made_checkpoint(tmp_path / "good")
    (tmp_path / "file").touch()
    for source, target, mend in (
        ("state", "new", "CybORG tells no true state"),
        ("pole", "new", "it plays CartPole-v1: only what plays CAGE-2"),
        ("good", "state", "exists already"),
        ("good", "file", "exists already"),
        ("good", "file/new", "cannot be written"),
    ):
        assert run_command(["export", str(tmp_path / source), str(tmp_path / target)]) == Exit.USAGE
        said = capsys.readouterr().err
        assert mend in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def evaluated(folder: Path, cyborg: Path) -> str:
    """Run the program that is exported; returns what it printed."""
    run = subprocess.run(
        [sys.executable, str(folder / "run_evaluation.py")],
        env={"PYTHONPATH": str(cyborg)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_evaluation_runs_as_it_is_with_this_agent_in_its_own_folder(folder: Path, tmp_path: Path) -> None:
    evaluation = """
import os
from gym import Env
import paramiko
from CybORG.Agents.SimpleAgents.BlueLoadAgent import BlueLoadAgent
if __name__ == "__main__":
    agent = BlueLoadAgent()
    print(type(agent).__name__, agent.get_action([0] * 52, 145) in range(145), os.getcwd())
"""
    files = {
        "CybORG/Evaluation/evaluation.py": evaluation,
        "CybORG/Agents/SimpleAgents/BlueLoadAgent.py": "import stable_baselines3",
    }
    cyborg = challenge_2(write_package(tmp_path / "source", files))
    for package in ("CybORG", "CybORG/Agents", "CybORG/Agents/Wrappers"):
        (cyborg / package / "__init__.py").write_text("")
    assert evaluated(folder, cyborg) == f"BlueAgent True {cyborg / 'CybORG' / 'Evaluation'}\n"


@pytest.mark.skipif(INSTALLED, reason="CybORG is installed")
def test_a_missing_cyborg_is_told(folder: Path) -> None:
    run = subprocess.run([sys.executable, str(folder / "run_evaluation.py")], capture_output=True, text=True)
    assert run.returncode == 1 and "CybORG cannot be imported" in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ([], "Evaluation/evaluation.py"),
        (["Evaluation/evaluation.py", "Shared/Scenarios/Scenario1b.yaml"], "Shared/Scenarios/Scenario2.yaml"),
    ],
)
def test_a_foreign_package_is_told(folder: Path, tmp_path: Path, files: list[str], missing: str) -> None:
    source = write_package(tmp_path / "source", {f"CybORG/{name}": "" for name in ["__init__.py", *files]})
    run = subprocess.run(
        [sys.executable, str(folder / "run_evaluation.py")],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and run.stderr.count("\n") == 1
    assert f"{source / 'CybORG'} is not CAGE Challenge 2's CybORG ({missing} is missing)" in run.stderr


@pytest.mark.skipif(not INSTALLED, reason="the real CybORG is not installed")
def test_the_challenges_own_evaluation_plays_the_episode_that_the_fleet_plays(
    folder: Path, tmp_path: Path
) -> None:
    program = f"""
import runpy, random, sys
sys.path.insert(0, {str(folder)!r})
import run_evaluation
evaluation = run_evaluation.prepare()
names = runpy.run_path(str(evaluation), run_name="evaluation")
scenario = evaluation.parents[1] / "Shared/Scenarios/Scenario2.yaml"
cyborg = names["CybORG"](str(scenario), "sim", agents={{"Red": names["B_lineAgent"]}})
wrapped, agent = names["wrap"](cyborg), names["BlueLoadAgent"]()
random.seed(7)
observation, rewards = wrapped.reset(), []
for _ in range(30):
    observation, reward, *_ = wrapped.step(agent.get_action(observation, wrapped.get_action_space("Blue")))
    rewards.append(reward)
print(*rewards)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    agent, zero = agent_in(folder), np.zeros(1, np.int64)
    slots = real_slots()
    observation, rewards = slots.reset(zero, np.array([7], np.uint64), [{"red_agent": "b_line"}]), []
    for _ in range(30):
        observation, reward, _, _ = slots.step(zero, np.array([agent.get_action(observation[0], 145)]))
        rewards.append(reward[0])
    np.testing.assert_allclose([float(word) for word in told.split()], rewards, atol=1e-6)


def real_slots() -> Any:
    from protocol.errors import UserError
    from rollout_worker.environments.cage2.cyborg_slots import CyborgSlots

    try:
        return CyborgSlots(1)
    except UserError:
        return CyborgSlots(1, Cage2Options(rules="leaderboard"))
