"""What all tests share."""

import os

from hypothesis import HealthCheck, settings

# How long a test takes on a busy machine says nothing about it. A gate gives each change the same examples;
# anyone else's runs go on looking for new ones.
settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("untimed")
