"""Force the simulator through recorded steps of the real CybORG and report the first difference in words."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.wording import counted
from rollout_worker.environments.cage2 import kernels, tables
from rollout_worker.environments.cage2.state import OUTCOME, ROW, full_state, initial_row

_PER_STEP: Final = (
    "blue_action", "green_kind", "green_target", "red_kind", "red_target", "exploit", "detected",
    "escalate_pick", "escalate_pick_removable", "reward", "done", "red_success", "blue_success", "ot_running",
)  # fmt: skip
_PER_HOST: Final = (
    "red_sessions", "red_privileged_sessions", "red_removable_sessions", "red_access", "decoys",
    "malware_files", "scanned", "red_port_memory",
)  # fmt: skip
_MEMORY: Final = (
    "meander_exploited", "meander_escalated", "meander_scanned", "meander_mapped", "b_line_counter",
)  # fmt: skip
_OUTCOMES: Final = tuple(OUTCOME.names or ())
_CHECKED: Final = ("obs", "reward", "done", "red_success", "blue_success", *_PER_HOST, "ot_running", *_MEMORY)
_KNOWN: Final = (*_PER_STEP, *_PER_HOST, *_MEMORY, "obs", "initial_obs", "rules")
_MOST_BYTES: Final = 2**28  # of all arrays together, unpacked; recorded traces have 3 MB
_REWARD_TOLERANCE: Final = 0.01
_SCRIPTED_SHARE: Final = 0.25  # of steps with another kind of action than the best fitting agent's
AT_RESET: Final = -1  # the step of a mismatch in initial_obs


@dataclass(frozen=True)
class Mismatch:
    """The first difference. `got` is the simulator's value, or the values that its rule allows."""

    episode: int
    step: int
    field: str
    index: int | None  # within the numbers or hosts of the field
    expected: float
    got: float | tuple[int, ...]

    def __str__(self) -> str:
        when = "at reset" if self.step == AT_RESET else f"step {self.step}"
        where = "" if self.index is None else f" of {_place(self.field, self.index)}"
        got = f"has {self.got:g}" if not isinstance(self.got, tuple) else _allowed_words(self.got)
        return (
            f"episode {self.episode}, {when}, {self.field}{where}: "
            f"the trace has {self.expected:g}, the simulator {got}"
        )


@dataclass(frozen=True)
class TraceReport:
    """What a replay found. `steps_compared` counts each episode up to and with its first difference."""

    file: str
    rules: str
    red_agents: tuple[str, ...]  # that fit the episodes best; "scripted": none did, its actions were given
    steps_compared: int
    episodes: int
    mismatched_episodes: int
    mismatch: Mismatch | None

    def __str__(self) -> str:
        kind = f"{self.rules} rules, red {' and '.join(self.red_agents)}"
        compared = f"{counted(self.steps_compared, 'step')} of {counted(self.episodes, 'episode')}"
        head = f"{self.file}: {compared} compared ({kind})"
        if self.mismatch is None:
            return f"{head}, no mismatch"
        differ = counted(self.mismatched_episodes, "episode")
        return f"{head}, mismatches in {differ}; first mismatch: {self.mismatch}"


@dataclass(frozen=True)
class _Differences:
    """The first difference of each episode: step [E] (the number of steps if none) and what it is."""

    step: NDArray[np.int64]
    mismatches: dict[int, Mismatch]
    wrong_kinds: NDArray[np.int64]  # [E] steps with another kind of red action than the trace's
    wrong_choices: NDArray[np.int64]  # [E] steps with another kind or an impossible target


def _place(field: str, index: int) -> str:
    if field in ("obs", "initial_obs"):
        return f"{tables.HOSTS[index // 4]} (number {index % 4 + 1} of its 4)"
    return tables.HOSTS[index]


def _allowed_words(allowed: tuple[int, ...]) -> str:
    values = ", ".join(map(str, allowed[:16])) + (", ..." if len(allowed) > 16 else "")
    return f"allows {values}" if len(allowed) == 1 else f"allows one of {values}"


def load_trace(path: str | PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a trace file that are checked; check their names, sizes, shapes and kinds.

    Raises:
        ValueError: the file is not a readable trace; the sentence names the file and what to do.
    """
    advice = (
        "give steps recorded in CybORG, complete and unmodified: an .npz file of arrays such as "
        "blue_action, obs and reward, each of (episodes, steps)"
    )
    try:
        with zipfile.ZipFile(path) as members:  # which unpacks no more of a member than its head says
            size = sum(member.file_size for member in members.infolist())
        if size > _MOST_BYTES:
            raise ValueError(f"its arrays take {size} bytes, more than {_MOST_BYTES}")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in _KNOWN}
        _check_arrays(arrays)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file; {advice}") from None
    except Exception as error:  # damaged archives raise whatever zipfile, zlib, struct and numpy have
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable trace: {reason}; {advice}") from error
    return arrays


def _check_arrays(arrays: Mapping[str, NDArray[Any]]) -> None:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_PER_STEP, ())
    shapes.update(dict.fromkeys(_PER_HOST, (len(tables.HOSTS),)))
    shapes["obs"] = (tables.OBSERVATION_SIZE,)
    required = (*shapes, "initial_obs")
    missing = [name for name in required if name not in arrays]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing[:4])}{' and more' if len(missing) > 4 else ''}")
    lead = arrays["blue_action"].shape
    if len(lead) != 2 or 0 in lead:
        raise ValueError(f"blue_action has shape {lead}, not (episodes, steps)")
    shapes.update({name: () for name in _MEMORY if name in arrays})
    expected = {name: lead + tail for name, tail in shapes.items()}
    expected["initial_obs"] = (lead[0], tables.OBSERVATION_SIZE)
    if "rules" in arrays:
        expected["rules"] = ()
    for name, shape in expected.items():
        kinds = "biuf" if name == "reward" else "biu"
        if arrays[name].shape != shape or arrays[name].dtype.kind not in kinds:
            found = f"{arrays[name].dtype} of shape {arrays[name].shape}"
            raise ValueError(f"{name} is {found}, not numbers of shape {shape}")
        if arrays[name].dtype == np.uint64 and arrays[name].max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} holds {arrays[name].max()}, which is no 64-bit signed integer")
    if not 0 <= int(arrays["blue_action"].min()) <= int(arrays["blue_action"].max()) < tables.BLUE_ACTIONS:
        raise ValueError(f"blue_action holds an action outside 0..{tables.BLUE_ACTIONS - 1}")
    if int(arrays.get("rules", np.array(0))) not in (0, 1):
        raise ValueError(f"rules is {arrays['rules']}, not 0 (current) or 1 (leaderboard)")


def check_trace(path: str | PathLike[str], red_agent: str | None = None) -> TraceReport:
    """Force the simulator through every step of a trace file and compare every checked array.

    The red agent is the one that fits an episode best, unless named: "sleep", "b_line", "meander" or
    "scripted": its actions are taken as given, also where they fit none of the three and the rest agrees.

    Raises:
        ValueError: the file is not a readable trace, or the red agent is unknown.
    """
    arrays = load_trace(path)
    kernels.compile_kernels()
    episodes = len(arrays["blue_action"])
    if red_agent is None:
        agents = _identify_red_agents(arrays)
    elif red_agent in tables.RED_AGENTS:
        agents = np.full(episodes, tables.RED_AGENTS.index(red_agent))
    else:
        raise ValueError(f"unknown red agent {red_agent!r}; one of {', '.join(tables.RED_AGENTS)}")
    found = _replay(arrays, agents)
    steps = arrays["blue_action"].shape[1]
    return TraceReport(
        file=Path(path).name,
        rules=tables.RULES[int(arrays.get("rules", np.array(0)))],
        red_agents=tuple(tables.RED_AGENTS[agent] for agent in np.unique(agents)),
        steps_compared=int(np.minimum(found.step + 1, steps).sum()),
        episodes=episodes,
        mismatched_episodes=len(found.mismatches),
        mismatch=found.mismatches[min(found.mismatches)] if found.mismatches else None,
    )


def _identify_red_agents(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Find the agent of each episode [E]: the fewest impossible choices, ties as the whole file has it."""
    episodes, steps = arrays["blue_action"].shape
    agents = np.array([tables.AGENT_B_LINE, tables.AGENT_MEANDER, tables.AGENT_SLEEP], np.int64)
    replays = [_replay(arrays, np.full(episodes, agent)) for agent in agents]
    wrong = np.stack([replay.wrong_choices for replay in replays])
    agreed = np.stack([replay.step for replay in replays])
    favourite = np.lexsort((-agreed.sum(1), wrong.sum(1)))[0]
    best = np.where(wrong[favourite] == wrong.min(0), favourite, wrong.argmin(0))
    chosen: NDArray[np.int64] = agents[best]
    wrong_kinds = np.stack([replay.wrong_kinds for replay in replays])[best, np.arange(episodes)]
    if wrong_kinds.sum() > _SCRIPTED_SHARE * episodes * steps:
        scripted = np.full(episodes, tables.AGENT_SCRIPTED)
        # A single wrong value can derail an agent for good; a script must explain more than that.
        if _replay(arrays, scripted).step.sum() > agreed[best, np.arange(episodes)].sum():
            return scripted
    return chosen


def _script(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the recorded outcomes as OUTCOME records [T, E]; what does not fit becomes impossible."""
    script = np.empty(arrays["blue_action"].T.shape, OUTCOME)
    for name in _OUTCOMES:
        script[name] = np.clip(arrays[name].T.astype(np.int64), -2, np.iinfo(np.int16).max)
    return script


def _replay(arrays: Mapping[str, NDArray[Any]], agents: NDArray[np.int64]) -> _Differences:
    """Step all episodes at once, each with its red agent."""
    episodes, steps = arrays["blue_action"].shape
    rows, slots = np.zeros(episodes, ROW), np.arange(episodes)
    settings = np.zeros((episodes, 5), np.int64)
    settings[:] = 0, 0, int(arrays.get("rules", np.array(0))), 1, steps + 1
    settings[:, 0] = agents
    kernels.reset_rows(rows, initial_row(), slots, np.zeros(episodes, np.uint64), settings)
    observations = np.zeros((episodes, tables.OBSERVATION_SIZE), np.uint8)
    rewards, truncated = np.zeros(episodes, np.float32), np.zeros(episodes, np.bool_)
    actions, script = np.ascontiguousarray(arrays["blue_action"].T, np.int64), _script(arrays)
    found = _Differences(np.full(episodes, steps), {}, *np.zeros((2, episodes), np.int64))
    _note(found, AT_RESET, "initial_obs", arrays["initial_obs"], observations)
    for step in range(steps):
        kernels.step_rows(rows, script[step], slots, actions[step], observations, rewards, truncated)
        _note_faults(found, step, rows, arrays)
        state = full_state(rows)
        state.update(obs=observations, reward=rewards, done=truncated)
        for name in _CHECKED:
            if name in arrays:
                _note(found, step, name, arrays[name][:, step], state[name])
    return found


def _note(found: _Differences, step: int, name: str, expected: NDArray[Any], got: NDArray[Any]) -> None:
    """Note the first difference of episodes that had none yet; `expected` and `got` are [E] or [E, n]."""
    reward = name == "reward"
    different = ~(np.abs(expected - got) <= _REWARD_TOLERANCE) if reward else expected != got
    for episode in np.flatnonzero(different if different.ndim == 1 else different.any(1)):
        if int(episode) not in found.mismatches:
            index = int(different[episode].argmax()) if different.ndim == 2 else None
            at = episode if index is None else (episode, index)
            numbers = float(expected[at]), float(got[at])
            found.step[episode] = step
            found.mismatches[int(episode)] = Mismatch(int(episode), step, name, index, *numbers)


def _note_faults(
    found: _Differences, step: int, rows: NDArray[Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Note recorded outcomes that the rules do not allow."""
    found.wrong_kinds[:] += arrays["red_kind"][:, step] != rows["outcome"]["red_kind"]
    for episode in np.flatnonzero(rows["fault"] >= 0):
        field = _OUTCOMES[rows["fault"][episode]]
        found.wrong_choices[episode] += field in ("red_kind", "red_target")
        if int(episode) not in found.mismatches:
            mask = int(rows["fault_allowed"][episode])
            allowed = tuple(value for value in range(63) if mask >> value & 1) or (-1,)
            recorded = float(arrays[field][episode, step])
            found.step[episode] = step
            found.mismatches[int(episode)] = Mismatch(int(episode), step, field, None, recorded, allowed)
