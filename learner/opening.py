"""How a run is opened: its folder locked, its state loaded or begun, its sockets bound, its keys laid out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zmq

from learner.access import Access
from learner.checkpoints import Checkpoint, any_in, checkpoint_folder, load
from learner.collector import Collector
from learner.config import PPOConfig, RunConfig
from learner.descriptors import keep_back
from learner.ledger import MOST_UNDONE, spell_ranges
from learner.metrics import MetricsWriter
from learner.models import policy_spec
from learner.registry import Registry
from learner.run_folder import RunFolder
from learner.step_hook import load_hook
from learner.step_record import StepRecorder
from learner.synchronous import SynchronousCollector
from learner.trainer import Trainer
from protocol import VERSION
from protocol.addresses import Ports
from protocol.errors import UserError
from protocol.keys import Allowed, KeyPair, Keyring, PeerKey, Role
from protocol.messages import Arrays, Welcome
from protocol.sockets.learner import bind_learner
from protocol.specs import EnvironmentSpec
from protocol.zap import Doorkeeper

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LearnerOptions:
    """What a learner process is told."""

    config: RunConfig
    ppo: PPOConfig
    environment: EnvironmentSpec
    folder: Path
    bind: str = "127.0.0.1"
    ports: Ports | None = None
    """None takes four free ones in a row."""
    insecure: bool = False
    keyring: Keyring | None = None
    """Whose keys are let in, over encrypted connections; None speaks in the clear."""
    resume: bool = False
    init_from: Path | None = None
    record_steps: Path | None = None
    step_hook: str = ""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """What a run that is open is made of."""

    folder: RunFolder
    trainer: Trainer
    policies: dict[int, Arrays]
    """The weights of the versions that may still be needed."""
    ports: Ports
    metrics: MetricsWriter
    collector: Collector


def own_keys(folder: Path) -> Mapping[Role, Path]:
    """Return the key files that a learner with keys leaves in its run's folder while it is at work."""
    return {"worker": folder / "worker.key", "operator": folder / "operator.key"}


def open_run(options: LearnerOptions, opened: ExitStack) -> OpenRun:
    """Lock, load, listen, in this order: nothing listens before it can answer.

    `opened` takes on what is to be released. UserError where the folder is in use, a checkpoint does not fit
    or a port is taken.
    """
    config = options.config
    hook = load_hook(options.step_hook) if options.step_hook else None
    keep_back()
    folder = opened.enter_context(RunFolder(options.folder))
    policy = policy_spec(options.environment, options.ppo)
    torch.set_num_threads(options.ppo.torch_threads or 1)  # first: the bits of the first weights depend on it
    trainer = Trainer(policy, options.ppo, config.seed, config.updates)
    checkpoint, policies = _load(options, trainer)
    access = _guard(options, opened)
    sockets = opened.enter_context(
        bind_learner(
            zmq.Context.instance(),
            options.bind,
            options.ports,
            insecure=options.insecure,
            security=access.pair if access else None,
        )
    )
    welcome = Welcome(
        run=folder.run,
        run_seed=config.seed,
        incarnation=folder.incarnation,
        mode=config.mode,
        environment=options.environment,
        policy=policy,
        heartbeat_seconds=config.heartbeat_seconds,
        liveness_seconds=config.liveness_seconds,
        stuck_after_seconds=config.stuck_after_seconds,
    )
    registry = _registry(options, folder, welcome, checkpoint)
    metrics = MetricsWriter(options.folder, trainer.update)
    opened.callback(metrics.close)
    if config.mode == "sync":
        recorder = StepRecorder(options.record_steps, options.resume) if options.record_steps else None
        if recorder:
            opened.callback(recorder.close)
        collector: Collector = SynchronousCollector(registry, sockets, recorder, hook, access)
    else:
        collector = Collector(registry, sockets, access)
    opened.enter_context(collector)
    for version, arrays in sorted(policies.items()):
        collector.inherit(version, arrays)
    return OpenRun(folder, trainer, policies, sockets.ports, metrics, collector)


def _guard(options: LearnerOptions, opened: ExitStack) -> Access | None:
    """Say who is let in, if not everyone; leave keys in the run's folder for this machine's processes."""
    if options.keyring is None:
        return None
    server, own = options.keyring.learner().public, []
    for role, file in own_keys(options.folder).items():
        key = PeerKey("this-machine", role, KeyPair.new(), server)
        file.unlink(missing_ok=True)
        key.write(file)
        opened.callback(file.unlink, missing_ok=True)
        own.append(Allowed(key.name, role, key.pair.public))
    access = Access(options.keyring, own)
    opened.enter_context(Doorkeeper(zmq.Context.instance(), access.admits))
    return access


def _load(options: LearnerOptions, trainer: Trainer) -> tuple[Checkpoint | None, dict[int, Arrays]]:
    """Put the trainer where the run goes on or begins; return the checkpoint it goes on from, and weights."""
    checkpoint, policies = None, dict[int, Arrays]()
    if options.resume and any_in(options.folder):
        checkpoint = load(options.folder)
        _check_sight(checkpoint, options.environment)
        trainer.load_state(checkpoint.arrays, {"update": checkpoint.update})
        policies = {version: dict(arrays) for version, arrays in checkpoint.versions.items()}
        logger.info("going on after update %d", checkpoint.update)
    elif options.init_from:
        first = load(options.init_from)
        _check_sight(first, options.environment)
        trainer.load_weights(first.arrays)
    policies[trainer.update] = trainer.policy_arrays()
    return checkpoint, policies


def _check_sight(checkpoint: Checkpoint, environment: EnvironmentSpec) -> None:
    """Raise UserError where a checkpoint's policy sees or chooses from something else than this run's."""
    theirs = checkpoint.state.get("environment", {}).get("options", {})
    for name in ("observation", "actions"):
        was, now = theirs.get(name), environment.options.get(name)
        if was and now and was != now:
            raise UserError(f"the checkpoint was trained with --{name} {was}, not {now}: give --{name} {was}")


def _registry(
    options: LearnerOptions, folder: RunFolder, welcome: Welcome, checkpoint: Checkpoint | None
) -> Registry:
    """Build the registry; what the journal holds past the checkpoint is rolled back."""
    now = time.monotonic()
    state: dict[str, Any] | None = None
    try:
        if checkpoint:
            state = {**checkpoint.state["registry"], "ledger": checkpoint.ledger}
        lineage = [(int(past), int(upto)) for past, upto in state["lineage"]] if state else []
        registry = Registry(options.config, welcome, VERSION, now, state)
    except (KeyError, TypeError, ValueError) as error:
        where = checkpoint_folder(options.folder / "checkpoints", checkpoint.update if checkpoint else 0)
        raise UserError(f"{where} is damaged or foreign, the run cannot go on from it: {error!r}") from error
    undone = folder.undone(lineage)
    for life in undone[-MOST_UNDONE:]:
        if life not in registry.ledger.undone:
            first, last = life.updates
            what = f"updates {first}-{last} of incarnation {life.incarnation}"
            which = f"{life.count} tickets ({spell_ranges(life.tickets)})"
            logger.warning("%s are rolled back: %s will be played again", what, which)
    registry.ledger.roll_back(undone)
    return registry
