"""What workers play: the registry of environments, the embedded CAGE-2 and Gymnasium's.

Importing this registers CAGE2-v0 with Gymnasium; numba is imported where an environment of CAGE-2 is built.
"""

from rollout_worker.environments.cage2 import gymnasium_env

gymnasium_env.register()
