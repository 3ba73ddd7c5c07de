"""The process: one thread plays or hosts, a second one keeps up the membership, one lock holds the state.

Whatever thread has news posts it as an event to the `Exchange`, where the instructions are dealt out at once:
what the player shall do to the main thread, what shall be sent to the membership thread. So a finished slot
begins its next ticket without waiting for the other thread, and an environment that blocks never looks like a
dead worker: heartbeats go on, and its tickets stand in them as stalled.
"""

from __future__ import annotations

import logging
import threading

import zmq

from protocol.addresses import resolve
from protocol.errors import UserError
from protocol.keys import PeerKey
from protocol.sockets import Socket
from protocol.sockets.worker import Dialling, connect_step
from rollout_worker.environments import registry
from rollout_worker.events import ExitCode, Stop
from rollout_worker.exchange import Exchange
from rollout_worker.main_thread import MainThread
from rollout_worker.membership_thread import MembershipThread, Sockets
from rollout_worker.options import WorkerOptions
from rollout_worker.process import configure_logging
from rollout_worker.signals import Signals

logger = logging.getLogger("rollout_worker")


def run_worker(options: WorkerOptions) -> ExitCode:
    """Be a worker until the run ends, the learner refuses or is given up, or a signal comes.

    Call it in the main thread of a process whose numerical libraries were limited to one thread before numpy
    was imported, as `python -m rollout_worker` does. UserError for options that cannot be followed.
    """
    places = options.places()
    log = configure_logging(options.log_level, options.log_file)
    registry.allow(options.allow_env)
    key = PeerKey.read(options.key) if options.key else None
    signals = Signals(options.drain_on_term_seconds, options.die_with_parent)
    exchange = Exchange(options, places, signals.pipe.wake)
    for host, _ in places.values():
        try:
            resolve(host)
        except UserError as error:
            logger.warning("%s: is --learner spelt right? Looking it up again at each try", error)
    with zmq.Context() as context:

        def connect(host: str, port: int, session: str) -> Socket:
            return connect_step(context, host, port, session, Dialling(key))

        sockets = Sockets.connect(context, *exchange.place, Dialling(key, watched=True))
        membership = MembershipThread(exchange, sockets, signals, log, options.learner)
        membership_thread = threading.Thread(target=membership.run, daemon=True)
        membership_thread.start()
        MainThread(exchange, options, connect).run()
        membership_thread.join()
    stop = exchange.stop or Stop(ExitCode.ERROR, "the membership thread ended; its traceback is in this log")
    logger.log(
        logging.ERROR if stop.code else logging.INFO, "ends: %s (exit status %d)", stop.reason, stop.code
    )
    return stop.code
