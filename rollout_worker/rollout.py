"""Episodes that are played in this process, without a fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from protocol.errors import FleetError
from protocol.messages import Arrays, Episode, Failure, Version
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.tickets import Ticket
from rollout_worker.environments import registry
from rollout_worker.player import Player, Step
from rollout_worker.policy import Policy


def play(
    spec: EnvironmentSpec,
    policy_spec: PolicySpec,
    arrays: Arrays,
    run_seed: int,
    tickets: Iterable[Ticket],
    *,
    slots: int = 50,
    version: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> Iterator[Episode]:
    """Play tickets, taken in order, under one policy; yield episodes as they end.

    The environment's delays are left out.
    FleetError where the environment raises (its traceback is in the log), UserError where it cannot be built,
    ProtocolError where the arrays do not fit the policy.
    """
    policy = Policy(policy_spec, arrays)
    player = Player(registry.build(replace(spec, step_delay=""), slots), spec, run_seed, on_step=on_step)
    waiting = iter(tickets)
    try:
        while True:
            while player.idle and (ticket := next(waiting, None)) is not None:
                player.start(ticket, Version(0, version), policy)
            if not player.playing:
                return
            for ended in player.advance():
                if isinstance(ended, Failure):
                    raise FleetError(f"ticket {ended.ticket} failed: {ended.reason}")
                yield ended
    finally:
        player.close()
