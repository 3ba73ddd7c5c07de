"""The slots of synchronous mode: which worker hosts which, and the episodes that are open in them."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learner.own_tickets import SESSION
from protocol.messages import Episode, Version
from protocol.specs import EnvironmentSpec
from protocol.step_messages import SlotReset
from protocol.tickets import Ticket, action_key

NOBODY = -1
_FIRST_CAPACITY_STEPS = 128


def deal(hosts: NDArray[np.int64], fixed: NDArray[np.bool_], present: Sequence[int]) -> NDArray[np.int64]:
    """Return the host of each slot, [n], evenly and contiguously over `present`, in its order.

    `hosts` [n] are the hosts so far. A slot that is `fixed` [n] keeps its host while that is present. Where
    none is, all slots have `NOBODY`.
    """
    slots = len(hosts)
    if not len(present):
        return np.full(slots, NOBODY)
    shares = [slots // len(present) + (place < slots % len(present)) for place in range(len(present))]
    wanted = np.repeat(np.array(present), shares)
    kept = fixed & np.isin(hosts, present)
    dealt = np.where(kept, hosts, NOBODY)
    room = {host: share - int((dealt == host).sum()) for host, share in zip(present, shares, strict=True)}
    others = np.flatnonzero(~kept).tolist()
    for first_choice in (True, False):
        for slot in others:
            host = int(wanted[slot]) if first_choice else max(room, key=lambda host: room[host])
            if dealt[slot] == NOBODY and room[host] > 0:
                dealt[slot], room[host] = host, room[host] - 1
    return dealt


class OpenEpisodes:
    """What has happened so far in the episode of each slot; enough to go on with it on another worker."""

    def __init__(self, slots: int, environment: EnvironmentSpec, run_seed: int) -> None:
        spaces = environment.spaces
        self._environment, self._run_seed = environment, run_seed
        capacity = min(spaces.max_episode_steps, _FIRST_CAPACITY_STEPS)
        dtype = np.dtype(spaces.observation_dtype)
        self.tickets: list[Ticket | None] = [None] * slots
        self.playing, self.begun = np.zeros(slots, np.bool_), np.zeros(slots, np.bool_)
        """Whether a slot has a ticket; whether its first observation is here."""
        self.steps = np.zeros(slots, np.int64)
        self.keys = np.zeros(slots, np.uint64)
        self.greedy = np.zeros(slots, np.bool_)
        self.current = np.zeros((slots, spaces.observation_size), dtype)
        """The last observation of each slot; zero where there is none."""
        self._began_at = np.zeros(slots)
        self._observations = np.zeros((slots, capacity + 1, spaces.observation_size), dtype)
        self._actions = np.zeros((slots, capacity), np.min_scalar_type(spaces.actions - 1))
        self._rewards = np.zeros((slots, capacity), np.float32)
        self._log_probs = np.zeros((slots, capacity), np.float32)

    def begin(self, slot: int, ticket: Ticket) -> None:
        """Let a free slot play a ticket."""
        self.tickets[slot], self.playing[slot] = ticket, True
        self.steps[slot], self.keys[slot] = 0, action_key(self._run_seed, ticket)
        scenario = self._environment.scenario(ticket.sequence, ticket.number)
        self.greedy[slot] = bool(scenario.get("greedy"))
        self._began_at[slot] = time.monotonic()

    def ticket(self, slot: int) -> Ticket:
        """Return the ticket of a slot that plays."""
        ticket = self.tickets[slot]
        assert ticket is not None
        return ticket

    def choose(
        self, slots: NDArray[np.int64], actions: NDArray[np.int64], log_probs: NDArray[np.float32]
    ) -> None:
        """Note what `slots` [k] do next."""
        steps = self.steps[slots]
        if len(slots) and int(steps.max()) == self._rewards.shape[1]:
            self._grow()
        self._actions[slots, steps], self._log_probs[slots, steps] = actions, log_probs

    def reset(self, slot: int) -> SlotReset:
        """Return what brings a slot where it stands now, the action under way included."""
        actions = self._actions[slot, : self.steps[slot] + 1 if self.begun[slot] else 0]
        return SlotReset(slot, self.ticket(slot), actions.astype(np.int64))

    def digest(self, slot: int) -> int:
        """Return what a fast-forward of the slot must give: the CRC-32 of its observations so far."""
        return zlib.crc32(self._observations[slot, : self.steps[slot] + 1].tobytes())

    def see(
        self, slots: NDArray[np.int64], observations: NDArray[np.generic], rewards: NDArray[np.float32]
    ) -> None:
        """Take in what came of `slots` [k]: the first observation, or that of one more step."""
        stepped = self.begun[slots]
        moved = slots[stepped]
        self._rewards[moved, self.steps[moved]] = rewards[stepped]
        self.steps[moved] += 1
        self.begun[slots] = True
        self._observations[slots, self.steps[slots]] = observations
        self.current[slots] = observations

    def finish(self, slot: int, run: str, version: Version, terminated: bool) -> Episode:
        """Return the episode of a slot; it is still the slot's until `free`."""
        steps = int(self.steps[slot])
        return Episode(
            run=run,
            session=SESSION,
            ticket=self.ticket(slot),
            version=version,
            terminated=terminated,
            seconds=time.monotonic() - float(self._began_at[slot]),
            observations=self._observations[slot, : steps + 1].copy(),
            actions=self._actions[slot, :steps].copy(),
            rewards=self._rewards[slot, :steps].copy(),
            log_probs=self._log_probs[slot, :steps].copy(),
        )

    def free(self, slot: int) -> None:
        """Forget a slot's episode."""
        self.tickets[slot] = None
        self.playing[slot] = self.begun[slot] = self.greedy[slot] = False
        self.current[slot], self.steps[slot], self.keys[slot] = 0, 0, 0

    def _grow(self) -> None:
        """Double the steps that an episode may have."""
        capacity = self._rewards.shape[1]
        more = min(capacity, self._environment.spaces.max_episode_steps - capacity)
        for name in ("_observations", "_actions", "_rewards", "_log_probs"):
            array = getattr(self, name)
            room = np.zeros((array.shape[0], more, *array.shape[2:]), array.dtype)
            setattr(self, name, np.concatenate((array, room), axis=1))
