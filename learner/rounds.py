"""When to look at which of many workers, to deal tickets and to answer; together where that is cheaper."""

from __future__ import annotations

from learner.dealing import deal, rebalance
from learner.instructions import Send
from learner.pace import IssueTimes
from learner.roster import Roster
from learner.sessions import Session
from learner.tickets import TicketOffice
from protocol.messages import Answer
from protocol.ranges import to_ranges

DEAL_SECONDS = 0.005
"""Under load the events of this time share one look at all workers; a lone event is answered at once."""
COALESCE_SECONDS = 0.05
"""What nobody idles for, such as dropping received episodes, waits for its neighbours at most this long."""
COALESCE_SECONDS_PER_WORKER = 0.0002
"""Or so long, where there are many: then looking at all of them costs the same share of the time."""
ALL_SECONDS = 1.0
"""Between two looks at all workers while nothing asks for one."""


class Rounds:
    """Deals the tickets of an office to a roster, and makes the answers."""

    def __init__(self, office: TicketOffice, roster: Roster, now: float) -> None:
        self._office, self._roster = office, roster
        self._deal_at = self._round_at = self._all_at = now
        self._stirred = True
        """Whether something changed that could concern anyone: all are looked at before the next round."""
        self._news: dict[Session, None] = {}
        """Those of whom something is new, which concerns only them: a look at all for each would cost as
        much as the square of their number."""
        self._later: dict[Session, None] = {}
        """The same, for the next round."""
        self._starved = False
        """Whether slots are idle: the next round looks at all, who may have queued what they could play."""
        self.issue_times = IssueTimes(office.train.account.issued)

    def stir(self) -> None:
        """Note that something changed that could concern anyone."""
        self._stirred = True

    def note(self, session: Session) -> None:
        """Note that something is new of one worker."""
        self._news[session] = None

    def note_episode(self, session: Session) -> None:
        """Note that a worker has delivered an episode: unless it has idle slots, that can wait."""
        (self._news if session.load < session.slots else self._later)[session] = None

    def turn(self, now: float, spacing_seconds: float, deals: bool) -> list[Send]:
        """Return the answers that are to be sent now; the next round is so many seconds off at least."""
        a_round = now >= self._round_at
        if a_round:
            self._round_at = now + spacing_seconds
            self._stirred |= self._starved or now >= self._all_at
        if not a_round and not ((self._stirred or self._news) and now >= self._deal_at):
            return []
        self._deal_at = now + DEAL_SECONDS
        return self._look(a_round, deals, now)

    def _look(self, a_round: bool, deals: bool, now: float) -> list[Send]:
        """Deal tickets, and answer whoever waits for it, is granted some, or has something to drop.

        Unless something concerns all, only those are looked at of whom something is new: what there was to
        deal, the last look at all has dealt, idle slots first.
        """
        everyone = self._stirred
        looked_at = self._roster.all() if everyone else [*self._news, *(self._later if a_round else ())]
        sessions = [session for session in looked_at if session.live]
        self._news.clear()
        if everyone:
            self._stirred, self._all_at = False, now + ALL_SECONDS
        if everyone or a_round:
            self._later.clear()
        if deals:
            ready = [session for session in sessions if session.takes_tickets]
            takers = [session for session in ready if not session.stuck] or (ready if everyone else [])
            deal(self._office, takers, takers if a_round else [session for session in takers if session.due])
            if everyone:
                rebalance(self._office, takers)
            starved = any(session.load < session.slots for session in takers)
            self._starved = starved or (self._starved and not everyone)
            self.issue_times.note(self._office.train.account.issued, now)
        return [
            self._answer(session)
            for session in sessions
            if session.due or session.grants or (a_round and session.changed)
        ]

    def _answer(self, session: Session) -> Send:
        session.answers += 1
        drops = {name: hand.drops(repeat=session.due) for name, hand in session.hands.items()}
        answer = Answer(
            incarnation=self._office.lineage.incarnation,
            number=session.answers,
            version=self._office.version,
            drop={name: to_ranges(numbers) for name, numbers in drops.items() if numbers},
            grants=self._office.grants(session.grants),
            desired=session.desired,
        )
        session.due, session.grants = False, []
        return Send(session.hello.session, answer)


def round_seconds(workers: int) -> float:
    """Return how often all of so many workers may be looked at."""
    return max(COALESCE_SECONDS, COALESCE_SECONDS_PER_WORKER * workers)
