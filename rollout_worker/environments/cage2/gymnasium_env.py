"""Registration of CAGE2-v0 with Gymnasium. Neither this module nor `register` imports numba."""

from typing import Final

import gymnasium

ENVIRONMENT_ID: Final = "CAGE2-v0"


def register() -> None:
    """Make `gymnasium.make("CAGE2-v0")` and `gymnasium.make_vec("CAGE2-v0")` known; again is harmless.

    Its `spec.max_episode_steps` is None: the environment truncates by itself, after its option `max_steps`.
    """
    if ENVIRONMENT_ID not in gymnasium.registry:
        gymnasium.register(
            ENVIRONMENT_ID,
            entry_point="rollout_worker.environments.cage2.single_env:Cage2Env",
            vector_entry_point="rollout_worker.environments.cage2.vector_env:Cage2VectorEnv",
            order_enforce=False,  # the environment checks by itself; a wrapper costs a fifth of the speed
            disable_env_checker=True,
        )
