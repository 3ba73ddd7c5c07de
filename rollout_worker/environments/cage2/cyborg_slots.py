"""The real CybORG 2.1 behind the slot interface, where it is installed: `cyborg`.

A few hundred steps/s; it exists to check the embedded simulator and what was trained on it.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollout_worker.environments.cage2 import cyborg_package
from rollout_worker.environments.cage2.cyborg_package import Cyborg
from rollout_worker.environments.cage2.defender_view import (
    VIEW_SIZE,
    WIDE_VIEW_WIDTH,
    reset_view,
    translate_action,
    update_view,
    write_view,
)
from rollout_worker.environments.cage2.description import blue_action_name, describe_observation
from rollout_worker.environments.cage2.options import actions_named, refuse_state
from rollout_worker.environments.cage2.scenario import DEFAULTS, Cage2Options, settings_of
from rollout_worker.environments.cage2.spaces import shown_columns, spaces
from rollout_worker.environments.cage2.tables import AGENT_B_LINE, AGENT_MEANDER, AGENT_SLEEP

_AGENT_CLASSES = {AGENT_SLEEP: "SleepAgent", AGENT_B_LINE: "B_lineAgent", AGENT_MEANDER: "RedMeanderAgent"}


def make_environment(cyborg: Cyborg, red_agent: str, green: bool = False) -> Any:
    """Build Scenario2 as Blue plays it, through ChallengeWrapper; `red_agent` is CybORG's class name."""
    players = {"Red": getattr(cyborg.agents, red_agent)}
    if green:
        players["Green"] = cyborg.agents.GreenAgent
    inner = cyborg.environment(str(cyborg.scenario), "sim", agents=players)
    return cyborg.challenge_wrapper(env=inner, agent_name="Blue")


class CyborgSlots:
    """The slot interface over real environments.

    The rules are those of the installed CybORG; UserError where `rules` are others, or it is not there.

    CybORG draws from Python's global generator: each slot keeps that generator's state of its own, so an
    episode depends on its seed and not on its neighbours.
    """

    ready_at: NDArray[np.float64] | None = None

    def __init__(self, slots: int, options: Cage2Options = DEFAULTS) -> None:
        refuse_state(options.observation)
        shown = spaces(options)
        self.slots, self._defaults = slots, options.scenario
        self.observation_dtype = np.dtype(np.uint8)
        self.observation_size, self.actions, self.masked = shown.observation_size, shown.actions, shown.masked
        self.max_episode_steps = shown.max_episode_steps
        self._cyborg = cyborg_package.load(options.rules)
        self._columns = shown_columns(options.observation, options.actions)
        self._action_set = actions_named(options.actions)
        self._built: dict[tuple[int, int, int], Any] = {}  # by slot, red agent, green
        self._playing: dict[int, Any] = {}
        self._random: dict[int, Any] = {}
        self._last: dict[int, tuple[int, float, NDArray[np.uint8]]] = {}  # action, reward, bits
        self._views = np.zeros((slots, VIEW_SIZE), np.uint8)
        self._steps_left = np.zeros(slots, np.int64)

    def reset(
        self, slots: NDArray[np.int64], seeds: NDArray[np.uint64], scenarios: Sequence[Mapping[str, Any]]
    ) -> NDArray[np.uint8]:
        """Begin an episode in each of `slots` [k]; returns the first observations [k, observation_size]."""
        observations = np.zeros((len(slots), self.observation_size), np.uint8)
        for k, (slot, seed, scenario) in enumerate(
            zip(slots.tolist(), seeds.tolist(), scenarios, strict=True)
        ):
            if not 0 <= slot < self.slots:
                raise ValueError(f"slot {slot} is outside 0..{self.slots - 1}")
            if "rules" in scenario:
                raise ValueError("rules are those of the installed CybORG; leave them out of the scenario")
            red, green, _, _, length = settings_of(scenario, self._defaults).tolist()
            self._random[slot] = random.Random(seed).getstate()
            with self._own_random(slot):
                if (slot, red, green) not in self._built:
                    self._built[slot, red, green] = make_environment(
                        self._cyborg, _AGENT_CLASSES[red], bool(green)
                    )
                    random.seed(seed)
                self._playing[slot] = self._built[slot, red, green]
                bits = np.asarray(self._playing[slot].reset(), np.uint8)
            self._steps_left[slot] = length
            reset_view(self._views[slot])
            observations[k] = self._shown(slot, bits)
        return observations

    def step(
        self, slots: NDArray[np.int64], actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Advance `slots` [k] by `actions` [k], one after the other; returns what `Cage2Slots` does."""
        for slot, action in zip(slots.tolist(), actions.tolist(), strict=True):
            if slot not in self._playing or not 0 <= action < self.actions:
                raise ValueError(
                    f"slot {slot} was not reset, or action {action} is outside 0..{self.actions - 1}"
                )
        observations = np.zeros((len(slots), self.observation_size), np.uint8)
        rewards = np.zeros(len(slots), np.float32)
        for k, (slot, action) in enumerate(zip(slots.tolist(), actions.tolist(), strict=True)):
            full = self._action_set.offered[action]
            if self._action_set.compact:
                full = translate_action(self._views[slot], full)
            with self._own_random(slot):
                answer, rewards[k], _, _ = self._playing[slot].step(action=full)
            bits = np.asarray(answer, np.uint8)
            self._last[slot] = full, float(rewards[k]), bits
            update_view(self._views[slot], bits, full)
            observations[k] = self._shown(slot, bits)
        self._steps_left[slots] -= 1
        return observations, rewards, np.zeros(len(slots), np.bool_), self._steps_left[slots] <= 0

    def describe_step(self, slot: int) -> str:
        """Return the last step of a slot in one line."""
        action, reward, bits = self._last[slot]
        environment = self._playing[slot]
        red = str(environment.get_last_action("Red"))
        for host, address in environment.get_ip_map().items():
            red = re.sub(rf"{re.escape(str(address))}\b", str(host), red)
        blue = blue_action_name(action)
        return f"Blue {blue}; Red {red}; reward {reward:.1f}; {describe_observation(bits)}"

    def close(self) -> None:
        """Drop the environments."""
        self._built.clear()
        self._playing.clear()

    @contextmanager
    def _own_random(self, slot: int) -> Iterator[None]:
        before = random.getstate()
        random.setstate(self._random[slot])
        try:
            yield
        finally:
            self._random[slot] = random.getstate()
            random.setstate(before)

    def _shown(self, slot: int, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        features = np.zeros(WIDE_VIEW_WIDTH, np.uint8)
        write_view(self._views[slot], bits, features)
        return features[self._columns]
