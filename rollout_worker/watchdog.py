"""Notices an environment that holds up the thread that builds and plays."""

from __future__ import annotations

from collections.abc import Collection

from protocol.messages import Welcome
from protocol.tickets import Ticket
from rollout_worker.events import Telemetry

STUCK_HEARTBEATS = 3
"""A worker that is held up ends this many heartbeats after the learner's limit: the learner counts first."""
BUILD_PATIENCE = 5
"""A build may take this many times as long as a step: it may compile."""


class Watchdog:
    """Counts for how long no pass was made where one should be."""

    def __init__(self) -> None:
        self._held_up_seconds, self._passes = 0.0, 0

    def built(self) -> None:
        """Count anew: what comes now is steps."""
        self._held_up_seconds = 0.0

    def heed(
        self,
        telemetry: Telemetry,
        elapsed_seconds: float,
        welcome: Welcome | None,
        building: bool,
        running: Collection[Ticket],
    ) -> str:
        """Return why the worker must end, once it has been held up for too long; "" before.

        Even if nothing is running any more: the learner has the tickets from another worker by then.
        """
        busy = building or running or telemetry.inside
        if welcome is None or telemetry.passes != self._passes or not busy:
            self._held_up_seconds, self._passes = 0.0, telemetry.passes
            return ""
        self._held_up_seconds += elapsed_seconds
        limit, margin = welcome.stuck_after_seconds, STUCK_HEARTBEATS * welcome.heartbeat_seconds
        if self._held_up_seconds < (limit * BUILD_PATIENCE if building else limit + margin):
            return ""
        some = ", ".join(str(ticket) for ticket in list(running)[:5])
        more = f" and {len(running) - 5} more" if len(running) > 5 else ""
        played = f", in one of the tickets {some}{more}" if some else ""
        what = "is not built" if building else f"makes no step{played}"
        name, seconds = welcome.environment.name, self._held_up_seconds
        return f"environment {name} {what} for {seconds:.0f} s (--stuck-after-seconds {limit:g})"
