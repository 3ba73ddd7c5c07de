"""What to do so that the learner becomes as it is wanted: no clock, thread or machine inside."""

from __future__ import annotations

from typing import Literal

from deploy.backoff import pause_seconds

OWN_ANSWER_SECONDS = 0.5
"""After a start; an answer that was heard earlier may be that of the learner before."""
STOP_SECONDS = 120.0
"""Between asking it to end and killing it: it may finish a minibatch and a checkpoint."""
DEATHS_IN_VAIN = 4
"""In a row, of a learner that never answered: then it is no longer started."""


class LearnerReconciler:
    """The learner, which is started again when it was killed, and not when its run is finished."""

    def __init__(self, config: str = "") -> None:
        self.config = config
        """That it was last started with."""
        self.failed = ""
        """Why it is no longer started."""
        self.deaths = 0
        """In a row, since it last answered or a command was given."""
        self._generation = 0
        self._began = self._start_at = 0.0
        self._asked: float | None = None
        """When it was asked to end."""
        self._lived = False

    def step(
        self, wanted: str | None, generation: int, alive: bool, answers: bool, now: float
    ) -> Literal["", "start", "stop", "kill"]:
        """Return what to do; `wanted` is its configuration, None where no learner is."""
        if generation != self._generation:
            self._generation, self.deaths, self.failed, self._start_at = generation, 0, "", 0.0
        if alive:
            self._lived = True
            if answers and now - self._began > OWN_ANSWER_SECONDS:
                self.deaths = 0
            if wanted == self.config:
                self._asked = None
                return ""
            if self._asked is None:
                self._asked = now
                return "stop"
            return "kill" if now - self._asked > STOP_SECONDS else ""
        if self._lived:  # it has ended just now
            self._lived = False
            told = self._asked is not None
            self.deaths += not told
            self._start_at = now if told else now + pause_seconds(self.deaths)
            self._asked = None
        if wanted is None or self.failed or now < self._start_at:
            return ""
        if self.deaths >= DEATHS_IN_VAIN:
            self.failed = "it ends as soon as it starts"
            return ""
        self.config, self._began, self._lived = wanted, now, True
        return "start"
