"""How many workers each pool shall have: as commands say, or as the learner's load calls for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from deploy.fleet.autoscale import Pool, Rule, State, decide, load_of
from deploy.fleet.state import DesiredPool

logger = logging.getLogger(__name__)


class PoolSizes:
    """Keeps the controllers of pools with a target; `before` is what another saw of the pools."""

    def __init__(self, before: Mapping[str, Any]) -> None:
        self._before = before
        self._states: dict[str, State] = {}
        self.scaled: dict[str, int] = {}
        """How many each pool with a target was last given."""
        self.reasons: dict[str, str] = {}

    def wanted(
        self, pools: Mapping[str, DesiredPool], report: Mapping[str, Any] | None, now: float
    ) -> dict[str, int | None]:
        """Return the counts, None where a pool shall have what there is room for."""
        targets = {name: pool for name, pool in pools.items() if pool.target and not pool.removed}
        counts = {name: 0 if pool.removed else pool.count for name, pool in pools.items()}
        for name in set(self.scaled) - set(targets):
            del self.scaled[name], self.reasons[name], self._states[name]
        for name, pool in targets.items():
            counts[name] = self.scaled.get(name, self._last(name, pool))
        load, ready = load_of(report), _ready(report)
        for name, pool in targets.items():
            had = counts[name] or 0
            others = sum(
                max(0, (counts[other] or 0) - ready.get(other, 0)) * pools[other].slots
                for other in pools
                if other != name
            )
            state, count, reason = decide(
                Rule.of(pool.min, pool.max, pool.target),
                self._states.get(name, State()),
                load,
                Pool(had, ready.get(name, 0), pool.slots, others),
                now,
            )
            if count != had:
                logger.info("%s: %s", name, reason)
            self._states[name], self.scaled[name], self.reasons[name] = state, count, reason
            counts[name] = count
        return counts

    def _last(self, name: str, pool: DesiredPool) -> int:
        """Return how many a pool had when it was last looked after."""
        seen = self._before.get(name, {})
        return int(seen.get("scaled") or seen.get("count") or pool.min)


def _ready(report: Mapping[str, Any] | None) -> dict[str, int]:
    """Return how many workers of each pool the learner calls ready."""
    found: dict[str, int] = {}
    for worker in report["workers"] if report else ():
        found[worker["pool"]] = found.get(worker["pool"], 0) + (worker["state"] == "ready")
    return found
