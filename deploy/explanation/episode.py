"""One episode with reasons: what was probable, what spoke for the choice, what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.config import CAGE2_ENVIRONMENTS
from deploy.playable import Playable
from protocol.tickets import Ticket

_TOP = 3
_WORTH_TELLING = 0.05


def annotated(playable: Playable, ticket: Ticket, names: Sequence[str]) -> dict[str, Any]:
    """Return an episode's steps as JSON values.

    `reasons` tell by how much the probability of the action taken falls if one thing that was seen is taken
    out of the observation, and all else left: positive speaks for it, negative against it.
    """
    from deploy.commands.replay import describe
    from rollout_worker.player import Step
    from rollout_worker.policy import Policy
    from rollout_worker.rollout import play

    told: list[str] = []

    def note(step: Step) -> None:
        told.append(describe(step))

    [episode] = play(
        playable.environment,
        playable.policy,
        playable.arrays,
        playable.seed,
        [ticket],
        slots=1,
        version=playable.version,
        on_step=note,
    )
    policy = Policy(playable.policy, playable.arrays)
    shares = probabilities(policy.logits(episode.observations[:-1]))
    steps = []
    for at, action in enumerate(episode.actions.tolist()):
        top = [int(place) for place in np.argsort(-shares[at], kind="stable")[:_TOP] if shares[at, place]]
        steps.append(
            {
                "step": at,
                "action": names[action],
                "probability": float(shares[at, action]),
                "top": {names[place]: float(shares[at, place]) for place in top},
                "reasons": _reasons(playable, policy, episode.observations[at], action),
                "reward": float(episode.rewards[at]),
                "outcome": told[at],
            }
        )
    scenario = dict(playable.environment.scenario(ticket.sequence, ticket.number))
    value = episode.undiscounted_return
    return {
        "ticket": str(ticket),
        "seed": playable.seed,
        "scenario": scenario,
        "return": value,
        "steps": steps,
    }


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities [n, actions] of logits."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _reasons(playable: Playable, policy: Any, observation: NDArray[Any], action: int) -> dict[str, float]:
    if playable.environment.name not in CAGE2_ENVIRONMENTS:
        return {}
    from deploy.explanation.sight import Sight

    sight = Sight(playable.environment)
    if not (facts := sight.facts(observation)):
        return {}
    rows = np.concatenate([observation[np.newaxis], sight.without(observation, facts)])
    shares = probabilities(policy.logits(rows))[:, action]
    effects = {fact.words: float(shares[0] - share) for fact, share in zip(facts, shares[1:], strict=True)}
    ranked = sorted(effects.items(), key=lambda item: -abs(item[1]))
    return {words: effect for words, effect in ranked if abs(effect) >= _WORTH_TELLING}
