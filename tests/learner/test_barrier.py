"""The barrier: rounds over real sockets, with hosts that do what hosts may do."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import zmq

from learner.barrier import Barrier, Watchers
from protocol.errors import ProtocolError
from protocol.messages import Query
from protocol.sockets import Socket
from protocol.sockets.learner import LearnerSockets, bind_learner
from protocol.step_messages import SlotReset
from protocol.tickets import Ticket
from tests.learner.scripted_hosts import SPACES, ScriptedHost, observation, reward

SLOTS = 12
DEADLINE_SECONDS = 20.0


class Game:
    """A learner at its barrier that plays one endless episode in each slot with the actions of a script."""

    def __init__(self, slots: int, stuck_after_seconds: float = 60.0) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets: LearnerSockets = bind_learner(self.context, "127.0.0.1", None)
        self.hosts: list[ScriptedHost] = []
        self.ready: tuple[str, ...] = ()
        self.actions: list[list[int]] = [[] for _ in range(slots)]
        self.begun = False
        self.rejected: list[str] = []
        self.misshapen: list[tuple[str, str]] = []
        self.gone: list[tuple[str, list[int]]] = []
        self.stuck: list[tuple[str, list[int]]] = []
        self.dealt: dict[str, int] = {}
        watchers = Watchers(
            dealt=self.dealt.update,
            gone=lambda host, slots: self.gone.append((host, slots)),
            stuck=lambda host, slots: self.stuck.append((host, slots)),
            misshapen=self._refuse,
            rejected=lambda error: self.rejected.append(str(error)),
        )
        self.barrier = Barrier(
            self.sockets.step,
            1,
            slots,
            SPACES,
            reset_of=lambda slot: SlotReset(slot, self.ticket(slot), np.array(self.actions[slot], np.int64)),
            ready=lambda: self.ready,
            watchers=watchers,
            stuck_after_seconds=stuck_after_seconds,
        )

    def ticket(self, slot: int) -> Ticket:
        return Ticket("train", slot)

    def join(self, count: int = 1) -> list[ScriptedHost]:
        joined = [
            ScriptedHost(self.context, self.sockets.ports, f"host-{len(self.hosts) + n}")
            for n in range(count)
        ]
        self.hosts += joined
        self.until(lambda: self.turn() is not None and {host.session for host in joined} <= self.present)
        self.ready = (*self.ready, *(host.session for host in joined))
        return joined

    @property
    def present(self) -> set[str]:
        return self.barrier._present

    def leave(self, host: ScriptedHost) -> None:
        self.ready = tuple(session for session in self.ready if session != host.session)

    def _refuse(self, session: str, reason: str) -> None:
        self.misshapen.append((session, reason))
        self.ready = tuple(other for other in self.ready if other != session)

    def begin(self) -> None:
        """Begin a round: the first resets, each later one takes an action in every slot."""
        slots = np.arange(len(self.actions))
        chosen = np.array(
            [(7 * slot + len(taken)) % SPACES.actions for slot, taken in enumerate(self.actions)]
        )
        for slot, action in enumerate(chosen.tolist()):
            if self.begun:
                self.actions[slot].append(action)
        self.begun = True
        self.barrier.begin(slots, chosen)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, (self.rejected, self.misshapen, self.dealt)
            self.turn()

    def turn(self) -> bool:
        for host in self.hosts:
            host.serve()
        return self.barrier.wait(time.monotonic() + 0.002)

    def play(self, rounds: int = 1) -> None:
        """Play whole rounds and check what every slot shows."""
        for _ in range(rounds):
            self.begin()
            self.until(self.turn)
            self.check()

    def check(self) -> None:
        results = self.barrier.results
        for slot, actions in enumerate(self.actions):
            assert results.observations[slot].tolist() == observation(self.ticket(slot), actions).tolist()
            assert results.rewards[slot] == (reward(actions) if actions else 0)
        assert not results.failures

    def close(self) -> None:
        self.sockets.__exit__(None, None, None)
        self.context.destroy(linger=0)


GameMaker = Callable[..., Game]


@pytest.fixture
def make_game() -> Iterator[GameMaker]:
    games: list[Game] = []

    def make(slots: int = SLOTS, stuck_after_seconds: float = 60.0) -> Game:
        games.append(Game(slots, stuck_after_seconds))
        return games[-1]

    yield make
    for game in games:
        game.close()


@pytest.fixture
def game(make_game: GameMaker) -> Game:
    return make_game()


def test_slots_are_dealt_evenly_and_played_in_step(game: Game) -> None:
    game.join(5)
    game.play(6)
    assert sorted(game.dealt.values()) == [2, 2, 2, 3, 3]
    owners = [game.barrier.sessions[place] for place in game.barrier.hosts]
    assert owners == sorted(owners), "slots are dealt contiguously, in the order of arrival"
    assert not game.rejected


def test_a_newcomer_gets_free_slots_only(game: Game) -> None:
    game.join()
    game.play(2)
    [late] = game.join()
    game.play(2)
    assert not late.steps, "every slot was amid its episode"
    for slot in range(0, SLOTS, 2):
        game.barrier.free(slot)
        game.actions[slot].clear()
    game.begin()
    for slot in range(0, SLOTS, 2):
        game.actions[slot].clear()
    game.until(game.turn)
    game.check()
    assert game.dealt == {"host-0": 6, "host-1": 6}
    assert not game.gone


def test_a_lost_host_in_the_middle_of_a_step(game: Game) -> None:
    first, second = game.join(2)
    game.play(4)
    first.frozen = True
    game.begin()
    before = len(second.steps)
    game.until(lambda: game.turn() or len(second.steps) > before)
    assert not game.turn()
    game.leave(first)
    game.until(game.turn)
    game.check()
    assert game.gone == [("host-0", list(range(6)))]
    assert second.forwarded == 6
    first.frozen = False
    game.play(2)
    assert any("late or a second one" in line for line in game.rejected)


def test_nobody_is_there_for_a_while(game: Game) -> None:
    game.begin()
    assert not game.turn()
    [only] = game.join()
    game.until(game.turn)
    only.kill()
    game.begin()
    assert not game.turn()
    game.leave(only)
    assert not game.turn()
    game.join()
    game.until(game.turn)
    game.check()


def unreachable(router: Socket, identity: bytes) -> bool:
    """Say whether a ROUTER knows that a peer is gone; one that is merely slow fills its queue."""
    try:
        router.send_multipart([identity, b"?"], zmq.DONTWAIT)
    except zmq.ZMQError as error:
        return error.errno == zmq.EHOSTUNREACH
    return False


def test_a_host_killed_between_two_rounds_is_noticed_when_it_is_sent_to(game: Game) -> None:
    first, _ = game.join(2)
    game.play(2)
    first.kill()
    game.until(partial(unreachable, game.sockets.step, b"host-0"))
    game.begin()
    game.until(game.turn)
    game.check()
    assert game.dealt["host-1"] == SLOTS and "host-0" in game.ready


def test_second_and_foreign_answers_are_counted_and_dropped(game: Game) -> None:
    first, second = game.join(2)
    first.answer = lambda answer: [answer, replace(answer, rewards=answer.rewards + 5)]
    second.answer = lambda answer: [
        replace(answer, session="host-0"),
        replace(answer, incarnation=9),
        replace(answer, number=answer.number + 1000),
        Query("status"),
        answer,
    ]
    game.play(5)
    for words in ("late or a second one", "another name", "incarnation 9", "a Query is not for"):
        assert any(words in line for line in game.rejected), words


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("observations", "its observations are uint8[6, 5] in answer"),
        ("rows", "its observations are uint8[5, 4] in answer"),
        ("bytes", "no valid message"),
    ],
)
def test_a_host_that_answers_in_another_shape_is_refused(game: Game, spoil: str, words: str) -> None:
    first, _ = game.join(2)
    game.play(2)
    spoilt = {
        "observations": lambda a: [replace(a, observations=np.zeros((6, 5), np.uint8))],
        "rows": lambda a: [
            replace(
                a,
                observations=a.observations[1:],
                rewards=a.rewards[1:],
                terminated=a.terminated[1:],
                truncated=a.truncated[1:],
                digests=a.digests[1:],
            )
        ],
        "bytes": lambda a: [b"nonsense"],
    }
    first.answer = spoilt[spoil]
    game.play(2)
    [(session, reason)] = game.misshapen
    assert session == "host-0" and words in reason
    assert game.dealt["host-1"] == SLOTS


def test_a_host_that_does_not_answer_is_stuck_until_it_does(make_game: GameMaker) -> None:
    game = make_game(stuck_after_seconds=0.2)
    first, second = game.join(2)
    game.play(3)
    first.frozen = True
    game.play(2)
    assert game.stuck == [("host-0", list(range(6)))]
    assert game.dealt["host-1"] == SLOTS
    first.frozen = False
    game.until(lambda: game.turn() and any("late" in line for line in game.rejected))
    assert game.dealt["host-1"] == SLOTS
    for slot in range(SLOTS):
        game.barrier.free(slot)
    game.play(2)
    assert game.dealt == {"host-0": 6, "host-1": 6}
    assert second.forwarded == 6 + 6


def test_the_only_host_is_waited_for_however_long_it_takes(make_game: GameMaker) -> None:
    game = make_game(stuck_after_seconds=0.05)
    [only] = game.join()
    game.play(2)
    only.frozen = True
    game.begin()
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        assert not game.turn()
    only.frozen = False
    game.until(game.turn)
    game.check()
    assert not game.stuck and not only.forwarded


def test_a_lost_frame_is_sent_again_when_the_host_says_that_it_is_there(game: Game) -> None:
    [only] = game.join()
    game.play(2)
    only.answer = lambda answer: []
    game.begin()
    game.until(lambda: len(only.steps) == 3)
    only.answer = lambda answer: [answer]
    only.present()
    game.until(game.turn)
    game.check()
    assert only.steps[3].number == only.steps[2].number


def test_more_resets_than_one_frame_holds(make_game: GameMaker) -> None:
    game = make_game(450)
    [only] = game.join()
    game.play(3)
    assert [len(step.resets) for step in only.steps[:4]] == [200, 200, 50, 0]


@pytest.mark.parametrize("seed", range(6))
def test_no_fault_of_hosts_changes_what_is_seen(make_game: GameMaker, seed: int) -> None:
    """Random joins, kills, freezes, late and double answers at random moments, for 60 rounds."""
    draw = random.Random(seed)
    game = make_game(stuck_after_seconds=0.05)
    game.join(2)
    for _ in range(60):
        game.begin()
        while not game.turn():
            alive = [host for host in game.hosts if host.session in game.ready]
            match draw.choice(["", "", "", "join", "kill", "leave", "freeze", "thaw", "double", "present"]):
                case "join" if len(alive) < 4:
                    game.join()
                case "kill" if len(alive) > 1:
                    victim = draw.choice(alive)
                    victim.kill()
                    game.leave(victim)
                case "leave" if len(alive) > 1:
                    game.leave(draw.choice(alive))
                case "freeze" if sum(host.frozen for host in alive) < len(alive) - 1:
                    draw.choice(alive).frozen = True
                case "thaw":
                    for host in alive:
                        host.frozen = False
                case "double":
                    draw.choice(alive).answer = lambda answer: [answer, answer]
                case "present":
                    host = draw.choice(alive)
                    if not host.frozen:
                        host.present()
        game.check()


def test_rejected_messages_are_protocol_errors(game: Game) -> None:
    seen: list[BaseException] = []
    game.barrier._watchers.rejected = seen.append
    [only] = game.join()
    only.socket.send(b"nonsense")
    while not seen:  # amid a round it would cost the host its orders
        game.barrier._hear_all()
    game.play(1)
    assert len(seen) == 1 and isinstance(seen[0], ProtocolError)
