"""Which workers may play in a run; every refusal names both sides' values."""

from __future__ import annotations

from dataclasses import asdict

from learner.config import RunConfig
from learner.hands import claims
from protocol.messages import MOST_NAME_CHARACTERS, Built, Hello, Holdings, Welcome

MOST_SLOTS = 100_000


class Admission:
    """What a run asks of a worker: the same run and release, its spaces, and in exact mode the same bits.

    `probe` and `processor` are the reference, of the first worker accepted; empty until then.
    """

    def __init__(
        self, welcome: Welcome, software: str, config: RunConfig, probe: str, processor: str
    ) -> None:
        self.welcome, self.software, self.exact = welcome, software, config.exact
        self.probe, self.processor = probe, processor
        evaluated = config.evaluation_episodes * len(welcome.environment.evaluate_scenarios)
        outstanding = (config.max_lag + 1) * config.episodes_per_update + evaluated
        self.most_claims = 1000 + 2 * outstanding  # some may be settled, and the worker not know it yet

    def refuses(self, hello: Hello) -> str:
        """Say why a program cannot play in this run; empty if it can."""
        run, software = self.welcome.run, self.software
        if hello.run and hello.run != run:
            return f"this worker belongs to run {hello.run}, this learner runs {run}: start a new worker"
        if hello.software.split(".")[0] != software.split(".")[0]:
            return f"the worker is version {hello.software}, the learner {software}: install the same release"
        if max(len(hello.session), len(hello.host)) > MOST_NAME_CHARACTERS:
            return f"a name in the worker's hello is longer than {MOST_NAME_CHARACTERS} characters"
        if not 0 < hello.slots <= MOST_SLOTS:
            return (
                f"the worker offers {hello.slots} slots, the learner needs at least 1, {MOST_SLOTS} at most"
            )
        return ""

    def refuses_claims(self, holdings: Holdings) -> str:
        """Say why a worker cannot hold what it lists: more than there is; empty if it can."""
        if (count := claims(holdings)) > self.most_claims:
            return f"the worker claims {count:,} tickets, nobody in this run can have {self.most_claims:,}"
        return ""

    def refuses_built(self, built: Built) -> str:
        """Say why what a worker built is of no use; empty if it is. The first accepted is the reference."""
        theirs, ours = asdict(built.spaces), asdict(self.welcome.environment.spaces)
        if differing := [key for key in ours if theirs[key] != ours[key]]:
            pairs = "; ".join(f"{key} {theirs[key]}, the run's {ours[key]}" for key in differing)
            return f"the worker's environment has {pairs}"
        self.probe, self.processor = self.probe or built.probe, self.processor or built.processor
        if self.exact and built.probe != self.probe:
            return (
                f"{self.difference(built)}: exact mode needs equal processors and the same numpy everywhere"
            )
        return ""

    def difference(self, built: Built) -> str:
        """Say how a worker's arithmetic differs from the first one's; empty if it does not."""
        if built.probe == self.probe:
            return ""
        return (
            f"the worker ({built.processor}) computes other bits, {built.probe}, "
            f"than the first ({self.processor}), {self.probe}"
        )
