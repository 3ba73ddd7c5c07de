"""What a run is told, one frozen dataclass per role; `config.toml` in the run folder holds these fields.

Values found out at run time (ports, incarnation, spaces) live elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from protocol.errors import UserError


class Range(NamedTuple):
    """The finite numbers that a setting may be."""

    lowest: float
    highest: float = math.inf
    above: bool = False
    """The lowest itself is left out."""

    def holds(self, value: float) -> bool:
        """Return whether `value` is one of them; no NaN is."""
        fits = self.lowest < value if self.above else self.lowest <= value
        return fits and value <= self.highest and value < math.inf

    def __str__(self) -> str:
        if self.highest == math.inf:
            return f"more than {self.lowest:g}" if self.above else f"at least {self.lowest:g}"
        return (
            f"more than {self.lowest:g}, at most {self.highest}"
            if self.above
            else f"from {self.lowest:g} to {self.highest}"
        )


def check_ranges(config: object, ranges: Mapping[str, Range]) -> None:
    """Raise UserError for the first field of `config` that is outside its range, or has an item that is."""
    for name, allowed in ranges.items():
        value: Any = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            check_range("--" + name.replace("_", "-"), number, allowed)


def check_range(option: str, value: float, allowed: Range) -> None:
    """Raise UserError, naming the option, where `value` is outside its range."""
    if not allowed.holds(value):
        raise UserError(f"{option} is {value}; it must be {allowed}")


COUNT = Range(1, 10**12)
SIZE = Range(0, 10**6)
SEED = Range(0, 2**63 - 1)
_SHARE = Range(0, 1)
_WEIGHT = Range(0)
_POSITIVE = Range(0, above=True)

_PPO_RANGES = {
    "hidden": Range(1, 65_536),
    "learning_rate": Range(0, 1, above=True),
    "final_learning_rate": _SHARE,
    "epochs": Range(1, 1000),
    "minibatch_steps": COUNT,
    "gamma": _SHARE,
    "gae_lambda": _SHARE,
    "clip": _POSITIVE,
    "clip_value": _WEIGHT,
    "entropy": _WEIGHT,
    "final_entropy": _WEIGHT,
    "exploration": _WEIGHT,
    "exploration_decay": _SHARE,
    "exploration_share": Range(0, 1, above=True),
    "value_coefficient": _WEIGHT,
    "max_grad_norm": _POSITIVE,
    "target_kl": _WEIGHT,
    "reward_scale": _POSITIVE,
    "behaviour_weight_cap": _POSITIVE,
    "torch_threads": Range(0, 1024),
}
_RUN_RANGES = {
    "episode_length": SIZE,
    "n_envs": Range(1, 10**6),
    "seed": SEED,
    "total_episodes": COUNT,
    "episodes_per_update": Range(1, 10**6),
    "max_lag": Range(0, 10**6),
    "selection_episodes": Range(0, 10**9),
    "evaluation_episodes": Range(0, 10**9),
    "checkpoint_every": COUNT,
    "keep_checkpoints": COUNT,
    "heartbeat_seconds": _POSITIVE,
    "liveness_seconds": _POSITIVE,
    "stuck_after_seconds": _POSITIVE,
    "max_losses": COUNT,
}


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """Hyperparameters of the update; the defaults train CAGE-2."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of the actor and of the critic alike."""
    activation: Literal["relu", "tanh"] = "relu"
    """Of the hidden layers."""
    learning_rate: float = 2e-3
    """Adam's step size at the first update; falls linearly to `final_learning_rate` at the last."""
    final_learning_rate: float = 1e-4
    """Adam's step size at the last update."""
    epochs: int = 2
    """Passes over each batch."""
    minibatch_steps: int = 2000
    """Environment steps per gradient step."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Decay of generalised advantage estimation: 0 trusts the critic, 1 the returns."""
    clip: float = 0.2
    """Clip range of the policy ratio."""
    clip_value: float = 0.0
    """Clip range of the value function; 0 leaves it unclipped."""
    entropy: float = 0.01
    """Weight of the entropy bonus at the first update; falls linearly to `final_entropy` at the last."""
    final_entropy: float = 0.001
    """Weight of the entropy bonus at the last update."""
    exploration: float = 0.03
    """Weight of a pull towards all legal actions alike, at the first step of an episode."""
    exploration_decay: float = 0.7
    """By which that weight falls with each step of an episode: what one does first matters longest."""
    exploration_share: float = 1.0
    """Share of the updates after which that weight is nothing; it falls linearly until then."""
    value_coefficient: float = 0.5
    """Weight of the critic's loss."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, actor and critic each."""
    target_kl: float = 0.0
    """The actor's part of an update ends early when its approximate KL divergence exceeds this; 0 never."""
    normalise_advantages: bool = True
    """Give the advantages of a batch mean 0 and deviation 1."""
    normalise_observations: bool = False
    """Give each input mean 0 and deviation 1, as far as it was seen in training."""
    reward_scale: float = 0.2
    """Rewards are multiplied by this before training; reported returns are not."""
    behaviour_weight_cap: float = 2.0
    """Truncation of proximal / behaviour probability, the weight of stale samples (decoupled PPO)."""
    torch_threads: int = 0
    """Threads of each tensor operation of the update, whose two networks have a thread of their own anyway;
    0 takes the cores that the workers leave, at least one."""

    def __post_init__(self) -> None:
        """Refuse numbers that no update can work with."""
        check_ranges(self, _PPO_RANGES)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One training run: what is played, how much of it, and how episodes become batches."""

    name: str = ""
    """Folder under `runs/`; empty makes one from the environment and the time."""
    environment: str = "cage2"
    """`cage2`, or the name of an environment that Gymnasium knows."""
    red_agents: tuple[str, ...] = ("b_line", "meander")
    """CAGE-2's red agents, taken by ticket in turn."""
    episode_length: tuple[int, ...] = (30, 50, 100)
    """Steps after which an episode is truncated, several taken by ticket in turn, for each red agent; 0 takes
    the environment's own limit (CAGE-2: 100)."""
    rules: Literal["current", "leaderboard"] = "current"
    """Version of CAGE-2's rules."""
    observation: str = "history"
    """What a defender of CAGE-2 sees: history, bits, state, or parts such as bits+scans+decoys; see
    docs/cage2.md."""
    actions: str = "compact"
    """What a defender of CAGE-2 chooses from: compact, compact-unmasked, compact-without-analyse, full or
    full-masked; see docs/cage2.md."""
    environment_options: tuple[tuple[str, str | int | float | bool], ...] = ()
    """Further options of the environment, such as green=true; may be repeated."""
    step_delay: str = ""
    """Time that each step takes besides: constant:10ms, straggler:8ms,50ms,0.05 (50 ms with that
    probability), exponential:10ms or lognormal:10ms,0.5 (mean, sigma); with ,slow=0.1x4 a tenth of a worker's
    environments is 4 times slower; ,blocking really sleeps."""
    mode: Literal["async", "sync"] = "async"
    """Workers hold the policy and play at their own pace, or step under the learner."""
    n_envs: int = 100
    """Environments in all; `fleet train` deals them to its workers."""
    seed: int = 1
    """Everything random follows from it."""
    total_episodes: int = 300_000
    """Episodes to train on, rounded up to whole batches."""
    episodes_per_update: int = 660
    """Episodes of one batch."""
    max_lag: int = 2
    """A ticket goes out only for a batch at most this many updates ahead of the weights; in sync mode 0."""
    order: Literal["arrival", "started"] = "arrival"
    """A batch holds the first episodes to arrive, or those of its tickets in order."""
    exact: bool = False
    """Play each ticket under exactly the version `max_lag` behind its batch: reproducible to the bit."""
    selection_episodes: int = 100
    """Fresh episodes for each cell at each checkpoint, beside training, by which the best is chosen; 0 takes
    the last instead."""
    evaluation_episodes: int = 1000
    """Fresh episodes for each cell of the final table, of the best checkpoint; 0: no table and no choice."""
    checkpoint_every: int = 25
    """Updates between checkpoints; the last update always writes one."""
    keep_checkpoints: int = 3
    """The newest checkpoints kept."""
    heartbeat_seconds: float = 1.0
    """Between the messages in which a worker states what it holds."""
    liveness_seconds: float = 5.0
    """A worker silent for this long is lost."""
    stuck_after_seconds: float = 60.0
    """A ticket without progress for this long goes to another worker as well."""
    max_losses: int = 10
    """A ticket that was running on this many lost workers is discarded as `kills workers`."""

    def __post_init__(self) -> None:
        """Refuse values that are out of range or contradict each other, with the mend."""
        check_ranges(self, _RUN_RANGES)
        if not self.episode_length or (len(self.episode_length) > 1 and 0 in self.episode_length):
            raise UserError(
                f"--episode-length is {list(self.episode_length)}: give numbers of steps, or 0 alone, "
                "which takes the environment's own limit"
            )
        if self.liveness_seconds <= self.heartbeat_seconds:
            raise UserError(
                f"--liveness-seconds is {self.liveness_seconds:g}; it must be more than --heartbeat-seconds, "
                f"which is {self.heartbeat_seconds:g}"
            )
        if self.mode == "sync" and (self.max_lag or self.exact):
            lag = "--lag exact:" if self.exact else "--max-lag "
            raise UserError(
                f"{lag}{self.max_lag} contradicts --mode sync, where no weights are ever old: leave it out"
            )
        if self.exact and self.order != "started":
            raise UserError("--lag exact:N implies --order started; leave --order out")

    @property
    def updates(self) -> int:
        """Return the number of updates of the whole run."""
        return -(-self.total_episodes // self.episodes_per_update)

    @property
    def choosing_episodes(self) -> int:
        """Return the episodes for each cell by which the best checkpoint is chosen; 0 where none is."""
        return self.selection_episodes if self.evaluation_episodes else 0

    @property
    def planned_episodes(self) -> int:
        """Return the number of episodes that it trains on: `total_episodes`, up to whole batches."""
        return self.updates * self.episodes_per_update
