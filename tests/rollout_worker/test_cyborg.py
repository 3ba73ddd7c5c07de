"""The adapter to the real CybORG, with a stand-in that draws from the global generator as CybORG does."""

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.errors import UserError
from protocol.specs import EnvironmentSpec
from rollout_worker.environments import registry
from rollout_worker.environments.cage2 import cyborg_package, defender_view
from rollout_worker.environments.cage2.cyborg_slots import CyborgSlots
from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.slots import Cage2Slots
from tests.fake_cyborg import challenge_2, forget_cyborg, other_challenge, write_package

VIEWED = Cage2Options(observation="history", actions="compact")
HOW_TO_GET_IT = "clone cage-challenge/cage-challenge-2"


@pytest.fixture
def nothing_installed() -> Iterator[None]:
    """Hide a CybORG of this machine, and forget what a test imports in its stead."""
    real, path = forget_cyborg(), sys.path[:]
    sys.path[:] = [entry for entry in path if not (Path(entry) / "CybORG").exists()]
    yield
    sys.path[:] = path
    forget_cyborg()
    sys.modules.update(real)


@pytest.fixture
def stand_in(nothing_installed: None, tmp_path: Path) -> None:
    put_first(challenge_2(tmp_path))


def put_first(folder: Path) -> None:
    """Let imports find what is in a folder; the fixture takes it out again."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def refusal(rules: str = "current") -> str:
    """Return the one line by which building the environment is refused."""
    with pytest.raises(UserError) as caught:
        CyborgSlots(1, Cage2Options(rules=rules))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_cyborg_is_told() -> None:
    assert refusal().startswith("CybORG is not installed: clone")


@pytest.mark.usefixtures("nothing_installed")
def test_the_unrelated_package_of_the_index_is_told_by_name(tmp_path: Path) -> None:
    put_first(write_package(tmp_path, {"cyborg/cyborg.py": ""}))
    told = refusal()
    assert f"the package cyborg at {tmp_path / 'cyborg' / '__init__.py'} is an unrelated one" in told
    assert "never pip install cyborg" in told
    # On a file system that ignores case, the unrelated one may answer to the other's name.
    (tmp_path / "cyborg").rename(tmp_path / "renamed")
    (tmp_path / "renamed").rename(tmp_path / "CybORG")
    put_first(tmp_path)
    assert "is not CAGE Challenge 2's CybORG" in refusal()
    assert "pip install cyborg brings an unrelated package" in refusal()


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("challenge", [1, 3, 4])
def test_another_challenges_cyborg_is_told_without_importing_it(challenge: int, tmp_path: Path) -> None:
    put_first(other_challenge(tmp_path, challenge))
    assert f"is that of CAGE Challenge {challenge}, not 2: {HOW_TO_GET_IT}" in refusal()


@pytest.mark.usefixtures("nothing_installed")
def test_the_folder_above_the_package_is_told(tmp_path: Path) -> None:
    challenge_2(tmp_path / "CybORG")
    (tmp_path / "CybORG" / "__init__.py").unlink(missing_ok=True)
    put_first(tmp_path)
    assert f"PYTHONPATH={tmp_path / 'CybORG'} finds it" in refusal()


@pytest.mark.usefixtures("nothing_installed")
def test_what_cyborg_needs_and_lacks_is_told(tmp_path: Path) -> None:
    challenge_2(tmp_path)
    (tmp_path / "CybORG" / "__init__.py").write_text("import no_such_yaml")
    put_first(tmp_path)
    assert "cannot be imported (No module named 'no_such_yaml'): pip install PyYAML" in refusal()


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(
    ("since_july", "keeps_version", "forgets_ports", "rules"),
    [
        (True, True, True, "current"),
        (True, False, False, "leaderboard"),
        (True, True, False, ""),
        (False, False, False, ""),
    ],
)
def test_the_rules_are_those_of_the_installed_version(
    since_july: bool,
    keeps_version: bool,
    forgets_ports: bool,
    rules: str,
    tmp_path: Path,
) -> None:
    challenge_2(tmp_path, since_july=since_july, keeps_version=keeps_version, forgets_ports=forgets_ports)
    put_first(tmp_path)
    for asked in ("current", "leaderboard"):
        if asked == rules:
            CyborgSlots(1, Cage2Options(rules=asked))
        else:
            told = refusal(asked)
            assert f"check out commit {cyborg_package.COMMITS[asked]} there" in told
            assert (f"give --rules {rules}" in told) == bool(rules)


@pytest.mark.usefixtures("stand_in")
def test_what_it_was_written_for_stands_in_only_while_it_is_imported() -> None:
    before = {name: sys.modules.get(name) for name in ("gym", "paramiko")}
    CyborgSlots(1)
    assert {name: sys.modules.get(name) for name in ("gym", "paramiko")} == before


def real_rules() -> str:
    """Return the rules of the CybORG of this machine."""
    try:
        cyborg_package.load("current")
    except UserError as error:
        assert "--rules leaderboard" in str(error)
        return "leaderboard"
    return "current"


@pytest.mark.skipif(cyborg_package._spec("CybORG") is None, reason="the real CybORG is not installed")
@pytest.mark.parametrize("red_agent", ["b_line", "meander", "sleep"])
def test_the_real_one_begins_and_plays_as_the_embedded_one_where_nothing_is_random(red_agent: str) -> None:
    rules = real_rules()
    options = Cage2Options(rules=rules, red_agent=red_agent, observation="history", actions="compact")
    real, embedded = CyborgSlots(1, options), Cage2Slots(1, options)
    zero, seed = np.zeros(1, np.int64), np.zeros(1, np.uint64)
    np.testing.assert_array_equal(real.reset(zero, seed, [{}]), embedded.reset(zero, seed, [{}]))
    for action in (28, 29):  # two decoys, before Red can have exploited anything
        ours, theirs = (slots.step(zero, np.array([action])) for slots in (embedded, real))
        assert ours[1] == theirs[1]
        if red_agent == "sleep":
            np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.usefixtures("stand_in")
def test_an_episode_depends_on_its_seed_only_and_the_global_generator_is_left_alone() -> None:
    slots, places = CyborgSlots(3), np.arange(3)
    outside = random.getstate()
    scenarios: list[dict[str, Any]] = [
        {"episode_length": 2},
        {"red_agent": "meander"},
        {"episode_length": 2, "green": False},
    ]
    episodes = []
    for order in ([0, 1, 2], [2, 1, 0]):
        first = slots.reset(places, np.array([5, 6, 5], np.uint64), scenarios)
        steps = [slots.step(places[order], np.zeros(3, np.int64)) for _ in range(3)]
        episodes.append((first, *(step[0][np.argsort(order)] for step in steps)))
        assert [step[3][np.argsort(order)].tolist() for step in steps] == [
            [False, False, False], [True, False, True], [True, False, True],
        ]  # fmt: skip
    np.testing.assert_array_equal(episodes[0], episodes[1])
    seen = np.array(episodes[0])
    np.testing.assert_array_equal(seen[:, 0], seen[:, 2])
    assert not np.array_equal(seen[:, 0], seen[:, 1])
    assert random.getstate() == outside


@pytest.mark.usefixtures("stand_in")
def test_compact_actions_reach_cyborg_translated_and_legality_is_shown() -> None:
    slots, zero = CyborgSlots(1, VIEWED), np.zeros(1, np.int64)
    slots.reset(zero, np.zeros(1, np.uint64), [{}])
    decoy = 1 + 3 * defender_view.N_DEFENDED  # the next decoy on Enterprise0
    seen = slots.step(zero, np.array([decoy]))[0][0]
    environment: Any = slots._playing[0]
    assert environment.actions == [55]  # HarakaSMPT
    assert seen.shape == (slots.observation_size,)
    assert seen[-slots.actions :].all()


@pytest.mark.usefixtures("stand_in")
def test_the_registry_builds_it_with_the_options_of_the_embedded_one() -> None:
    spaces = registry.describe("cyborg", {}, 30)
    slots = registry.build(EnvironmentSpec("cyborg", {"rules": "current"}, spaces), 2)
    assert (slots.slots, slots.masked, slots.max_episode_steps) == (2, True, 30)
    assert slots.observation_size == spaces.observation_size
    with pytest.raises(UserError, match="not the leaderboard ones"):
        registry.build(EnvironmentSpec("cyborg", {"rules": "leaderboard"}, spaces), 2)
    with pytest.raises(UserError, match="CybORG tells no true state"):
        registry.describe("cyborg", {"observation": "state"}, 30)


@pytest.mark.usefixtures("stand_in")
def test_a_step_is_told_in_words() -> None:
    slots, zero = CyborgSlots(1, VIEWED), np.zeros(1, np.int64)
    slots.reset(zero, np.zeros(1, np.uint64), [{}])
    slots.step(zero, np.array([1 + 3 * defender_view.N_DEFENDED]))
    said = slots.describe_step(0)
    assert said.startswith("Blue DecoyHarakaSMPT Enterprise0; Red ExploitRemoteService User4; reward -0.")
    assert "; seen " in said and "; marked " in said


@pytest.mark.usefixtures("stand_in")
def test_wrong_arguments_are_refused() -> None:
    slots, zero = CyborgSlots(1), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="was not reset"):
        slots.step(zero, zero)
    with pytest.raises(ValueError, match="installed CybORG"):
        slots.reset(zero, np.zeros(1, np.uint64), [{"rules": "current"}])
    with pytest.raises(ValueError, match=r"outside 0\.\.0"):
        slots.reset(zero + 1, np.zeros(1, np.uint64), [{}])
    slots.reset(zero, np.zeros(1, np.uint64), [{}])
    with pytest.raises(ValueError, match=r"outside 0\.\.144"):
        slots.step(zero, zero + 145)
    slots.close()
