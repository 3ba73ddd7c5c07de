"""Time the PPO update by itself, on synthetic episodes: `python benchmarks/update.py [--json FILE]`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from learner.config import PPOConfig
from learner.trainer import Trainer
from protocol.messages import Episode, Version
from protocol.specs import PolicySpec
from protocol.tickets import Ticket

CAGE2 = PolicySpec(363, 37, masked=True)
CARTPOLE = PolicySpec(4, 2)
SETTINGS: tuple[tuple[str, PolicySpec, PPOConfig, int], ...] = (
    ("cage2, 64-64, minibatch 4,000, 4 epochs", CAGE2, PPOConfig(), 400),
    ("cage2, 128-128", PolicySpec(363, 37, masked=True, hidden=(128, 128)), PPOConfig(), 400),
    ("cage2, 64-64, minibatch 2,000, 2 epochs", CAGE2, PPOConfig(minibatch_steps=2000, epochs=2), 400),
    ("cage2, 64-64, minibatch 512", CAGE2, PPOConfig(minibatch_steps=512), 100),
    ("cartpole, 64-64, minibatch 250, 10 epochs", CARTPOLE, PPOConfig(minibatch_steps=250, epochs=10), 50),
)
EPISODE_STEPS = 100


def synthetic_episodes(spec: PolicySpec, episodes: int) -> list[Episode]:
    """Make truncated episodes of legal actions, with one input in eight set where the policy is masked."""
    random = np.random.default_rng(1)
    shape = (episodes, EPISODE_STEPS)
    observations = random.standard_normal((episodes, EPISODE_STEPS + 1, spec.inputs), dtype=np.float32)
    actions = random.integers(0, spec.actions, shape)
    if spec.masked:
        mask = np.ones((episodes, EPISODE_STEPS + 1, spec.actions), dtype=np.uint8)
        mask[..., :5] = actions[0, 0] < 5
        actions = np.maximum(actions, 5)
        observations = np.concatenate([(observations > 1.15).astype(np.uint8), mask], axis=-1)
    rewards = random.standard_normal(shape, dtype=np.float32)
    log_probs = np.full(shape, -np.log(spec.actions - 5 * spec.masked), dtype=np.float32)
    return [
        Episode("run", "session", Ticket("train", i), Version(1, 0), False, 0.0, *arrays)
        for i, arrays in enumerate(zip(observations, actions, rewards, log_probs, strict=True))
    ]


def measure(name: str, spec: PolicySpec, config: PPOConfig, episodes: int, repeats: int) -> dict[str, object]:
    batch, trainer = synthetic_episodes(spec, episodes), Trainer(spec, config, seed=1, updates=1000)
    trainer.train(batch)
    steps, wall, cpu = episodes * EPISODE_STEPS, [], []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        figures = trainer.train(batch)
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    return {
        "setting": name,
        "steps_per_update": steps,
        "gradient_steps": int(figures["gradient_steps"]),
        "cpu_microseconds_per_sample_and_epoch": float(np.median(cpu)) / steps / config.epochs * 1e6,
        "steps_per_second": steps / float(np.median(wall)),
        "steps_per_cpu_second": steps / float(np.median(cpu)),
    }


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    threads: Annotated[int, typer.Option(help="torch's threads.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed updates of each setting.")] = 5,
) -> None:
    torch.set_num_threads(threads)
    rows = [measure(*setting, repeats) for setting in SETTINGS]
    for row in rows:
        print(
            f"{row['setting']:43} {row['cpu_microseconds_per_sample_and_epoch']:6.2f} CPU µs/sample/epoch, "
            f"{row['steps_per_second']:8,.0f} steps/s, {row['steps_per_cpu_second']:8,.0f} per CPU second, "
            f"{row['gradient_steps']} gradient steps"
        )
    if json_file:
        json_file.write_text(json.dumps({"threads": threads, "update": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
