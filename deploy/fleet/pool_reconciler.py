"""What to do so that a pool becomes as it is wanted: no clock, thread or machine inside.

Whoever keeps a pool calls `step` about once a second with what is wanted and what is seen, carries out the
actions, and tells what came of starts to `started`. State, not events: a fresh reconciler that sees a pool
for the first time goes on with it, because whom it lets go follows from the names alone: the youngest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from deploy.backoff import pause_seconds
from deploy.engines import Member

SHORT_LIFE_SECONDS = 60.0
"""Whoever lives longer died of something new: its place is filled without delay."""
DEATHS_IN_VAIN = 3
"""In a row on one host, of workers that the learner never saw ready: then the host is put aside."""
MISSING_SECONDS = 10.0
"""An engine may need this long to list what it started."""
MOST_STARTS = 500
"""At once; then it is looked whether they are still wanted."""
STOP_SECONDS = 10.0
"""Between asking a worker to end, which it does within two seconds, and killing it."""
ASK_AGAIN_SECONDS = 5.0
FORGOTTEN_SECONDS = 30.0
"""A worker that drains, and of which the learner has not known for so long, is asked to end."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of a pool now."""

    count: int
    generation: int = 0
    """Where it rises, failures are forgiven."""
    since: int = 0
    """Workers of lower numbers were launched for something else: they are replaced."""
    drain_seconds: float = 600.0
    """How long who must go may finish its episodes; 0 asks it to return them."""
    over: bool = False
    """The run is: workers end by themselves, which is no failure."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen of a pool now."""

    members: Sequence[Member]
    sessions: Mapping[str, str] = field(default_factory=dict)
    """States of the living workers that the learner knows, by label; empty where it does not answer."""
    orphans: Collection[str] = ()
    """Members whom the pool as it is wanted now would not have, such as on a host that left its list."""
    drained: Collection[str] = ()
    """Workers that somebody told the learner to drain, also those that have left since."""
    asked: float | None = None
    """When the learner was asked for what is said of it here; None where it does not answer."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start workers under these names, on no host of `avoid`."""

    names: tuple[str, ...]
    avoid: frozenset[str]


@dataclass(frozen=True, slots=True)
class End:
    """Have workers end: `drain` finishes their episodes, `stop` returns them, `kill` asks nobody."""

    how: Literal["drain", "stop", "kill"]
    names: tuple[str, ...]


Action = Start | End


@dataclass(slots=True)
class Life:
    """One worker, as far as it was watched."""

    began: float
    seen: float
    host: str = ""
    pending: bool = False
    joined: float | None = None
    """When the learner first called it ready."""
    drained: bool = False
    """Somebody else asked it to leave: its place stays empty until the next command."""
    leaving: Literal["", "told", "drain", "stop", "kill"] = ""
    since: float = 0.0
    """When it was first asked to leave so."""
    asked: float = 0.0
    """When it was last asked."""
    known: float = 0.0
    """When the learner last knew of it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker that was not started, or ended by itself."""

    name: str
    host: str
    detail: str
    in_vain: bool
    """It never was of use."""


class PoolReconciler:
    """A pool's workers, `NAME-NUMBER` each.

    `first` is a number above all that ever were; `leaving` are those whom one before this let go.
    """

    def __init__(self, pool: str, first: int = 1, leaving: Collection[str] = ()) -> None:
        self.pool, self.next, self._let_go = pool, first, frozenset(leaving)
        self.lives: dict[str, Life] = {}
        self.aside: dict[str, str] = {}
        """Hosts that get no worker, and why."""
        self.failures: deque[Failure] = deque(maxlen=50)
        self._ended: dict[str, tuple[Member, Life, float]] = {}
        """Who ended lately, and when: a later word of the learner says whether it was drained."""
        self._deaths: dict[str, int] = {}
        """In a row, by host, of the short-lived."""
        self._vain: dict[str, int] = {}
        self._due: list[float] = []
        """When places of the dead may be filled again."""
        self._drained = self._count = 0
        self._generation = 0

    @property
    def despairs(self) -> bool:
        """Say whether a place is empty because it failed again and again."""
        return bool(self._due) and max(self._deaths.values(), default=0) >= DEATHS_IN_VAIN

    def step(self, wish: Wish, seen: Seen, now: float) -> list[Action]:
        """Take what is wanted and what is seen, the members before `now`; return what to do."""
        if wish.generation != self._generation:
            self._forgive(wish.generation, now)
        self._count = wish.count
        self._look(seen, wish, now)
        if wish.over:
            self._ended.clear()
        self._judge(seen, now)
        self._choose(wish, seen)
        return [*self._ends(wish, seen, now), *self._starts(wish, now)]

    def started(self, members: Sequence[Member], now: float) -> None:
        """Take what came of a start."""
        for member in members:
            if member.state == "failed":
                life = self.lives.pop(member.name, Life(now, now))
                life.host = member.host
                self._death(member, life, now)
            elif life_now := self.lives.get(member.name):
                life_now.host, life_now.pending = member.host, member.state == "pending"

    def _forgive(self, generation: int, now: float) -> None:
        self._generation, self._drained = generation, 0
        for life in self.lives.values():
            if life.drained:  # whoever takes its place may come once it is gone
                life.drained, life.leaving, life.since, life.asked = False, "drain", now, now
        for book in (self.aside, self.failures, self._deaths, self._vain, self._due):
            book.clear()

    def _look(self, seen: Seen, wish: Wish, now: float) -> None:
        """Bring the lives up to date."""
        for member in seen.members:
            self.next = max(self.next, _number(member.name) + 1)
            if member.state == "failed":
                if (life := self.lives.pop(member.name, None)) and not wish.over:
                    self._ended[member.name] = member, life, now
                continue
            if member.name not in self.lives:
                gone = member.name in self._let_go
                self.lives[member.name] = Life(
                    now, now, leaving="drain" if gone else "", since=now, asked=now
                )
            life = self.lives[member.name]
            life.seen, life.host, life.pending = now, member.host, member.state == "pending"
            session = seen.sessions.get(member.name, "")
            if session:
                life.known = now
            if session == "ready" and life.joined is None:
                life.joined = now
                self._vain.pop(life.host, None)
            if session or member.name in seen.drained:
                life.drained = member.name in seen.drained and not life.leaving
        there = {member.name for member in seen.members}
        for name, life in list(self.lives.items()):
            if name not in there and (life.leaving or now - life.seen > MISSING_SECONDS):
                del self.lives[name]
                if not wish.over:
                    detail = "its engine no longer knows it"
                    self._ended[name] = Member(name, life.host, "failed", detail), life, life.seen

    def _judge(self, seen: Seen, now: float) -> None:
        """Note the ends of which the learner has said all that it knows."""
        for name, (member, life, ended) in list(self._ended.items()):
            life.drained |= name in seen.drained
            if life.leaving or life.drained or seen.asked is None or seen.asked >= ended:
                del self._ended[name]
                self._death(member, life, now)

    def _death(self, member: Member, life: Life, now: float) -> None:
        """Note an end, and when its place may be filled again."""
        if life.leaving:
            return
        if life.drained:
            self._drained += len(self.lives) + self._drained < self._count
            return
        host, short = life.host or member.host, now - life.began < SHORT_LIFE_SECONDS
        in_vain = short and life.joined is None
        deaths = self._deaths[host] = self._deaths.get(host, 0) + 1 if short else 1
        self._due.append(now + pause_seconds(deaths - 1))
        self.failures.append(Failure(member.name, host, member.detail, in_vain))
        if in_vain:
            self._vain[host] = self._vain.get(host, 0) + 1
            if host and self._vain[host] >= DEATHS_IN_VAIN:
                self.aside[host] = member.detail

    def _choose(self, wish: Wish, seen: Seen) -> None:
        """Choose who must go: whoever is of no use, then who waits for its place, then the youngest."""
        staying = [name for name, life in self.lives.items() if not life.leaving]
        useless = [name for name in staying if _number(name) < wish.since or name in seen.orphans]
        useful = sorted(
            (name for name in staying if name not in useless and not self.lives[name].drained),
            key=lambda name: (not self.lives[name].pending, -_number(name)),
        )
        for name in (*useless, *useful[: max(0, len(useful) - wish.count)]):
            self.lives[name].leaving = "told"

    def _ends(self, wish: Wish, seen: Seen, now: float) -> list[End]:
        """Ask those that must go, harder as time passes."""
        asked: dict[Literal["drain", "stop", "kill"], list[str]] = {"drain": [], "stop": [], "kill": []}
        for name, life in self.lives.items():
            how: Literal["", "drain", "stop", "kill"] = ""
            match life.leaving:
                case "told":
                    plays = name in seen.sessions and not life.pending
                    how = "drain" if plays and wish.drain_seconds > 0 else "stop"
                case "drain" if now - life.since > wish.drain_seconds:
                    how = "stop"
                case "drain" if now - max(life.known, life.since) > FORGOTTEN_SECONDS:
                    how = "stop"
                case "drain" if now - life.asked > ASK_AGAIN_SECONDS and seen.sessions.get(name) == "ready":
                    how = "drain"  # the learner is another one, or did not hear
                case "stop" | "kill" if now - life.asked > STOP_SECONDS:
                    how = "kill"
            if how:
                life.since = now if how != life.leaving else life.since
                life.leaving, life.asked = how, now
                asked[how].append(name)
        return [End(how, tuple(names)) for how, names in asked.items() if names]

    def _starts(self, wish: Wish, now: float) -> list[Start]:
        """Fill the places that are empty and whose time has come; never more than are wanted."""
        empty = max(0, wish.count - self._drained - len(self.lives) - len(self._ended))
        self._due = sorted(self._due)[:empty]
        while self._due and self._due[0] <= now:
            self._due.pop(0)
        many = min(empty - len(self._due), MOST_STARTS)
        names = tuple(f"{self.pool}-{self.next + offset}" for offset in range(many))
        if not names:
            return []
        self.next += len(names)
        self.lives.update({name: Life(now, now) for name in names})
        return [Start(names, frozenset(self.aside))]


def _number(name: str) -> int:
    """Return the number at the end of a worker's name; 0 where there is none."""
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0
