"""The main thread: it builds the environment, then plays or hosts, as the membership asks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from protocol.errors import FleetError, ProtocolError
from protocol.messages import Built, Welcome
from protocol.sockets import Socket
from protocol.specs import PolicySpec, Spaces
from rollout_worker.environments import registry
from rollout_worker.environments.slots import RAISED, SlotEnvironments
from rollout_worker.events import (
    Abandon,
    Build,
    BuildDone,
    BuildFailed,
    Dial,
    ExitCode,
    Introduce,
    Terminate,
)
from rollout_worker.exchange import Exchange, Play, Task
from rollout_worker.host import Host, StepService
from rollout_worker.options import WorkerOptions
from rollout_worker.player import Player
from rollout_worker.probe import probe, processor
from rollout_worker.process import wake_precisely

logger = logging.getLogger("rollout_worker")


class MainThread:
    """Has a player in asynchronous mode, a step service in synchronous mode, once the environment is built.

    `connect` returns the step socket of a host, port and session; it is for sync mode only, and for this
    thread.
    """

    def __init__(
        self, exchange: Exchange, options: WorkerOptions, connect: Callable[[str, int, str], Socket]
    ) -> None:
        self._exchange, self._options, self._connect = exchange, options, connect
        self._player: Player | None = None
        self._service: StepService | None = None

    def run(self) -> None:
        """Do what the membership asks of this thread, until it says stop."""
        wake_precisely()
        try:
            while (tasks := self._exchange.take_tasks(self._patience_seconds)) is not None:
                player, service = self._player, self._service
                for task in tasks:
                    self._do(task)
                if service:
                    self._serve(service)
                elif player and player.playing and (ended := player.advance()):
                    self._exchange.post([self._exchange.outbox.pack(one) for one in ended])
        except BaseException as error:  # an environment may raise what is meant for this process
            logger.exception("cannot go on")
            self._exchange.post([Terminate(f"{type(error).__name__}: {error}", ExitCode.ERROR)])
        finally:
            if employed := self._player or self._service:
                employed.close()
            self._exchange.worked.set()

    def _patience_seconds(self) -> float:
        """Return how long there is nothing else to do."""
        if self._service:
            return 0.0
        return self._player.due_in_seconds if self._player else math.inf

    def _do(self, task: Task) -> None:
        match task:
            case Build(welcome):
                self._build(welcome)
            case Dial():
                if self._service is not None:
                    host, ports = self._exchange.place
                    self._service.dial(host, ports.step)
            case Introduce(incarnation):
                assert self._service is not None
                self._service.introduce(incarnation)
            case Play(start, policy):
                assert self._player is not None
                self._player.start(start.ticket, start.version, policy, start.twice)
            case Abandon(tickets):
                assert self._player is not None
                self._player.abandon(tickets)

    def _build(self, welcome: Welcome) -> None:
        began = time.monotonic()
        name, session = welcome.environment.name, self._exchange.session
        try:
            hosts = welcome.mode == "sync"  # the learner's steps will tell how many
            environments = registry.build(welcome.environment, 1 if hosts else self._options.slots)
            spaces = _spaces(environments)
            _check_policy(welcome.policy, spaces)
            built = Built(spaces, probe(environments, welcome.environment, welcome.policy), processor())
        except RAISED as error:
            if not isinstance(error, FleetError):
                logger.exception("environment %s cannot be built", name)
            reason = f"environment {name} cannot be built: {_one_line(error)}"
            self._exchange.post([BuildFailed(reason)])
            return
        if hosts:
            host = Host(environments, welcome.environment, welcome.run_seed)
            address, ports = self._exchange.place
            socket = self._connect(address, ports.step, session)
            self._service = StepService(socket, host, session, welcome.heartbeat_seconds)
            self._exchange.work = host
        else:
            self._player = self._exchange.work = Player(
                environments, welcome.environment, welcome.run_seed, run=welcome.run, session=session
            )
        seconds = time.monotonic() - began
        what = "to be hosted" if hosts else f"in {environments.slots} slots"
        logger.info("ready: %s %s, built in %.1f s", name, what, seconds)
        self._exchange.post([BuildDone(built)])

    def _serve(self, service: StepService) -> None:
        try:
            service.serve()
        except ProtocolError as error:
            self._exchange.reject(error)
        if service.host.failed_in_a_row >= self._options.max_failures:
            reason = f"{service.host.failed_in_a_row} failures in a row; their tracebacks are in this log"
            self._exchange.post([Terminate(reason, ExitCode.ERROR)])


def _spaces(environments: SlotEnvironments) -> Spaces:
    return Spaces(
        environments.observation_size,
        environments.observation_dtype.name,
        environments.actions,
        environments.masked,
        environments.max_episode_steps,
    )


def _check_policy(policy: PolicySpec, spaces: Spaces) -> None:
    if (policy.inputs, policy.actions, policy.masked) != (spaces.inputs, spaces.actions, spaces.masked):
        raise FleetError(
            f"it has {spaces.inputs} inputs, {spaces.actions} actions, mask {spaces.masked}; the policy has"
            f" {policy.inputs} inputs, {policy.actions} actions, mask {policy.masked}"
        )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FleetError) else f"{type(error).__name__}: {text}"
