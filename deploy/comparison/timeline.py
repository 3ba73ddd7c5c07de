"""Who waits for whom: the steps of a few environments, at the barrier and at their own pace."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from protocol.messages import Arrays, Version
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.tickets import Ticket, environment_seed
from rollout_worker.environments import registry
from rollout_worker.environments.delays import StepDelay, parse
from rollout_worker.player import Player, Step
from rollout_worker.policy import Policy

if TYPE_CHECKING:
    from learner.step_hook import Round

SLOTS = 8
"""Environments shown."""
ROUNDS_FILE = "rounds.jsonl"


@dataclass(frozen=True, slots=True)
class Span:
    """One step of one environment: it lasts until `over`, and what came of it is looked at at `seen`."""

    slot: int
    began: float
    over: float
    seen: float


def note(seen: Round) -> None:
    """Append who stepped what to ROUNDS_FILE in the working directory: a `--step-hook`."""
    shown = [
        (slot, ticket.number, int(step))
        for slot, ticket, step in zip(seen.slots.tolist(), seen.tickets, seen.steps, strict=True)
        if slot < SLOTS
    ]
    with Path(ROUNDS_FILE).open("a") as file:
        file.write(json.dumps([seen.number, shown]) + "\n")


def synchronous_spans(rounds: Path, record: Path, delay: StepDelay, run_seed: int) -> list[Span]:
    """Return the steps of a run with `note` as its hook and its steps on record."""
    from learner.step_record import read_record

    shown = dict(json.loads(line) for line in rounds.read_text().splitlines())
    draws = _Draws(delay, run_seed)
    spans = []
    for number, group in groupby(read_record(record), key=lambda order: order.round):
        orders = list(group)
        ended = max(order.answered for order in orders)
        sent = {slot: order.sent for order in orders for slot in order.slots.tolist() if slot < SLOTS}
        for slot, ticket, step in shown.get(number, []):
            over = sent[slot] + draws.seconds(slot, ticket, step)
            spans.append(Span(slot, sent[slot], min(over, ended), ended))
    return spans


def asynchronous_spans(
    spec: EnvironmentSpec, policy: PolicySpec, run_seed: int, slots: int, seconds: float
) -> list[Span]:
    """Play as a worker does, with untrained weights, for so long after a second; return the steps then made.

    The learner does not take part: an asynchronous worker's steps do not wait for it.
    """
    spec = replace(spec, step_delay=spec.step_delay.removesuffix(",blocking"))
    draws = _Draws(parse(spec.step_delay), run_seed)
    looks: dict[int, list[tuple[float, int, int]]] = defaultdict(list)

    def look(step: Step) -> None:
        if step.slot < SLOTS:
            looks[step.slot].append((time.monotonic(), step.ticket.number, step.number))

    player = Player(registry.build(spec, slots), spec, run_seed, on_step=look)
    weights = Policy(policy, _untrained(policy))
    number, ends = 0, time.monotonic() + 1 + seconds
    try:
        while time.monotonic() < ends:
            while player.idle:
                player.start(Ticket("train", number), Version(0, 0), weights)
                number += 1
            time.sleep(min(player.due_in_seconds, 1.0))
            player.advance()
    finally:
        player.close()
    return [
        Span(slot, began, min(began + draws.seconds(slot, ticket, step), seen), seen)
        for slot, moments in looks.items()
        for (began, ticket, step), (seen, _, _) in pairwise(moments)
        if seen > ends - seconds
    ]


def around_an_update(spans: Sequence[Span], seconds: float) -> list[Span]:
    """Return the steps of a stretch of time with the longest pause of all a third from its start."""
    moments = sorted({(span.began, span.seen) for span in spans})
    _, pause = max((second[0] - first[1], first[1]) for first, second in pairwise(moments))
    begin = pause - seconds / 3
    return [span for span in spans if begin < span.seen and span.began < begin + seconds]


class _Draws:
    """The delays of any step, looked up; an episode's are drawn once."""

    def __init__(self, delay: StepDelay, run_seed: int) -> None:
        self._delay, self._run_seed = delay, run_seed
        self._drawn: dict[tuple[int, int], tuple[Iterator[float], list[float]]] = {}

    def seconds(self, slot: int, ticket: int, step: int) -> float:
        """Return how long this step takes."""
        if (slot, ticket) not in self._drawn:
            seed = environment_seed(self._run_seed, Ticket("train", ticket))
            self._drawn[slot, ticket] = self._delay.draws(seed, slot), []
        source, known = self._drawn[slot, ticket]
        while len(known) <= step:
            known.append(next(source))
        return known[step]


def _untrained(policy: PolicySpec) -> Arrays:
    return {name: np.zeros(shape, np.float32) for name, shape in policy.shapes().items()}
