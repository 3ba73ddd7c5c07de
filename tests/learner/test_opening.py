"""What a run begins with depends on its settings alone."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from learner.config import PPOConfig, RunConfig
from learner.opening import LearnerOptions, open_run
from protocol.specs import EnvironmentSpec, Spaces


def test_the_first_weights_are_the_same_whatever_threads_torch_had(tmp_path: Path) -> None:
    environment = EnvironmentSpec("CartPole-v1", {}, Spaces(300, "float32", 2, False, 500))
    first = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            options = LearnerOptions(RunConfig(), PPOConfig(), environment, tmp_path / str(threads))
            with ExitStack() as opened:
                first.append(open_run(options, opened).trainer.policy_arrays())
    finally:
        torch.set_num_threads(before)
    for name, array in first[0].items():
        np.testing.assert_array_equal(array, first[1][name])
