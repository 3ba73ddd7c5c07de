"""`fleet explain`: the facts of an observation, what is counted by situation, and an episode with reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.app import run_command
from deploy.explanation.habits import differ_from, habits, played
from deploy.explanation.sight import Sight, action_names, just_seen, scanned_so_far
from deploy.playable import Playable
from learner.checkpoints import load
from protocol.messages import Episode
from protocol.specs import EnvironmentSpec
from rollout_worker.environments.cage2.options import HISTORY_SIZE
from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.slots import Cage2Slots
from tests.deploy.made_checkpoint import made_checkpoint


def _playable(folder: Path, **told: Any) -> Playable:
    return Playable.of(load(made_checkpoint(folder / "checkpoint", **told)))


def _walk(spec: EnvironmentSpec, names: list[str], steps: int) -> list[tuple[str, Any]]:
    """Return (own action, observation after it) of an episode of uniform legal actions."""
    options = {name: value for name, value in spec.options.items() if name != "note"}
    slots = Cage2Slots(1, Cage2Options(max_steps=100, **options))
    slot, rng = np.zeros(1, np.int64), np.random.default_rng(3)
    observation = slots.reset(slot, np.array([4], np.uint64), [{"red_agent": "meander"}])[0]
    found = [("", observation)]
    for _ in range(steps):
        legal = np.flatnonzero(observation[-len(names) :]) if spec.spaces.masked else np.arange(len(names))
        action = int(rng.choice(legal))
        observation = slots.step(slot, np.array([action]))[0][0]
        found.append((names[action], observation))
    return found


@pytest.mark.parametrize("told", [{}, {"observation": "bits+scans+actions"}, {"observation": "state"}])
def test_facts_are_what_was_seen_and_can_be_taken_out(tmp_path: Path, told: dict[str, Any]) -> None:
    spec = _playable(tmp_path, **told).environment
    sight, names = Sight(spec), action_names(spec)
    walk, kinds = _walk(spec, names, 60), set()
    for step, (action, observation) in enumerate(walk):
        facts = sight.facts(observation)
        words = [fact.words for fact in facts]
        assert len(set(words)) == len(words)
        if step:
            [own] = [text for text in words if text.startswith("own last actions")]
            assert action in own
        else:
            assert not facts, "nothing is seen or done before the first step"
        rows = sight.without(observation, facts)
        for fact, row in zip(facts, rows, strict=True):
            assert fact.words not in [left.words for left in sight.facts(row)]
            untouched = np.flatnonzero(row == observation)
            assert len(untouched) < len(observation), f"{fact.words} is not shown at all"
            mask = slice(-len(names), None) if spec.spaces.masked else slice(0, 0)
            np.testing.assert_array_equal(row[mask], observation[mask])
        kinds |= {text.split()[0] for text in words}
    expected = {"now:", "own", "scanned"} | (
        {"decoys", "1"} if told.get("observation") != "bits+scans+actions" else set()
    )
    assert expected <= kinds


def test_without_all_facts_only_what_never_changes_is_left(tmp_path: Path) -> None:
    """What one fact hides, no other fact still tells: a history is its facts."""
    spec = _playable(tmp_path).environment
    sight, names = Sight(spec), action_names(spec)
    walk = _walk(spec, names, 40)
    for _, observation in walk:
        row = observation
        while facts := sight.facts(row):
            row = sight.without(row, facts[:1])[0]
        np.testing.assert_array_equal(row[: -len(names)], walk[0][1][: -len(names)])


def test_situations_in_words() -> None:
    history = np.zeros(HISTORY_SIZE, np.uint8)
    assert (just_seen(history), scanned_so_far(history)) == ("nothing new, nothing marked", "nothing")
    history[4 * 8 + 2] = history[4 * 10 + 2] = history[4 * 10 + 3] = 1  # User0 and User2 of tables.HOSTS
    assert just_seen(history) == "marked Privileged: User2"
    history[4 * 10 + 3] = 0
    assert just_seen(history) == "marked Unknown: User2 and 1 more"
    history[4 * 1] = 1
    assert just_seen(history) == "scan on Enterprise0"
    history[4 * 7 : 4 * 7 + 2] = 1
    assert just_seen(history) == "exploit on Op_Server0"
    for host, words in ((9, "1 User host"), (12, "2 User hosts"), (2, "as far as the Enterprise net")):
        history[52 + host] = 1
        assert scanned_so_far(history) == words
    history[52 + 7] = 1
    assert scanned_so_far(history) == "as far as the Operational net"


def test_shares_add_up_and_situations_cover_the_steps(tmp_path: Path) -> None:
    playable = _playable(tmp_path, episode_length=["30"])
    names = action_names(playable.environment)
    found = played(playable, 4)
    assert list(found) == ["b_line", "meander"]
    plain = habits(playable, found["meander"], names)
    assert plain["episodes"] == 4 * 6
    assert sum(plain["actions"].values()) == pytest.approx(1)
    for shares in plain["first_steps"]:
        assert sum(shares.values()) == pytest.approx(1)
    for title in ("just_seen", "scanned_so_far"):
        rows = plain[title]
        assert 0.9 < sum(row["share"] for row in rows) < 1 + 1e-9
        assert [row["share"] for row in rows] == sorted((row["share"] for row in rows), reverse=True)


def test_where_red_agents_are_told_apart() -> None:
    def episodes(*actions: list[int]) -> list[Episode]:
        return [_episode(np.array(some)) for some in actions]

    one, two = episodes([0, 1, 2], [0, 2, 2]), episodes([0, 1, 3], [0, 2, 3])
    assert differ_from({"a": one, "b": two}, 4) == 2
    assert differ_from({"a": one, "b": one}, 4) is None
    assert differ_from({"a": one, "b": episodes([1, 1])}, 4) == 0


def _episode(actions: Any) -> Any:
    class Short:
        def __init__(self) -> None:
            self.actions, self.length = actions, len(actions)

    return Short()


@pytest.mark.parametrize("options", [["--seed", "9"], ["--episode", "train:5"], ["--episode", "evaluate:3"]])
def test_an_episode_is_annotated_to_the_end(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    made_checkpoint(tmp_path / "made")
    file = tmp_path / "found.json"
    told = [
        "explain",
        str(tmp_path / "made"),
        "--episodes",
        "3",
        "--steps",
        "2",
        *options,
        "--json",
        str(file),
    ]
    assert run_command(told) == 0
    plain, out = json.loads(file.read_text()), capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "step 1: " in out and "step 2: " not in out
    assert "greedy" not in out and "Episode " in out
    episode = plain["episode"]
    assert episode["seed"] == (9 if "--seed" in options else 5)
    assert sum(step["reward"] for step in episode["steps"]) == pytest.approx(episode["return"])
    for step in episode["steps"]:
        shares = list(step["top"].values())
        assert shares == sorted(shares, reverse=True) and len(shares) <= 3
        assert sum(shares) <= 1 + 1e-9
        assert step["outcome"].startswith(f"step {step['step']}: Blue ")
    if "train:5" in options:
        assert episode["scenario"] == {"red_agent": "meander", "episode_length": 100}
    assert any(step["reasons"] for step in episode["steps"])
    assert list(plain["red_agents"]) == ["b_line", "meander"]


def test_a_red_agent_it_never_saw_is_noted_and_an_observation_without_bits_is_counted_plainly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_checkpoint(tmp_path / "made", red_agents=["b_line"], observation="decoys")
    assert run_command(["explain", str(tmp_path / "made"), "--episodes", "2", "--red", "sleep"]) == 0
    found = capsys.readouterr()
    assert "never trained against sleep" in found.err
    assert "sleep: 2 episodes" in found.out and "what was just seen" not in found.out


def test_of_another_environment_actions_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_checkpoint(tmp_path / "made", environment="CartPole-v1")
    file = tmp_path / "found.json"
    told = ["explain", str(tmp_path / "made"), "--episodes", "4", "--json", str(file)]
    assert run_command(told) == 0
    shares = json.loads(file.read_text())["red_agents"][""]["actions"]
    assert sum(shares.values()) == pytest.approx(1) and set(shares) <= {"action 0", "action 1"}
    assert "CartPole-v1: 4 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        (["none"], "no run or checkpoint 'none'"),
        (["pretrained:none"], "no policy pretrained:none"),
        (["none", "--steps", "many"], "--steps is 'many'"),
        (["none", "--episode", "x"], "'x' is no ticket"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str],
    mend: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["explain", *options]) == 2
    err = capsys.readouterr().err
    assert mend in err and err.count("\n") == 1
