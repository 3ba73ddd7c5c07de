"""From what a fleet's file says, and what was wanted before, to what is wanted now: checked, and told."""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from deploy.access import KEY_VARIABLE, keyring_of
from deploy.commands.train import usable_ports
from deploy.engines.catalogue import ON_THIS_HOST
from deploy.engines.processes import is_locked
from deploy.fleet.learner_process import LocalLearner
from deploy.fleet.plan import FleetPlan, PoolPlan
from deploy.fleet.state import Desired, DesiredLearner, DesiredPool, FleetFolder
from deploy.runs import best_checkpoint
from deploy.settings import Settings, check_resumable, resolve, settings_of, to_toml
from protocol.addresses import Ports
from protocol.errors import UserError

_USUAL_PORT, _OTHER_PORTS = 5555, range(20_000, 32_000, 4)
_EVERYWHERE, _LOOPBACK = ("0.0.0.0", "::"), ("localhost", "::1")


def desire(plan: FleetPlan, folder: FleetFolder, before: Desired | None) -> Desired:
    """Return what is wanted. Raises UserError where it contradicts what the run has been so far."""
    known = settings_of(before.learner.config) if before else _begun(folder.run)
    old = known if plan.place.host or _has_begun(folder.run) else None
    if before and before.learner.place.host != plan.place.host:
        raise UserError(
            f"[learner] host was {before.learner.place.host or 'this machine'!r}: a run does not move; "
            "give [learner] another name"
        )
    chosen = _with_what_stays(plan, known, old)
    Ports.parse(chosen.launch.port)  # a learner at work is not stopped for one that could not begin
    if not plan.place.host:
        _check_free(folder, chosen)
    if old:
        _check_goes_on(plan, folder, old, chosen)
        check_resumable(old, chosen, plan.name)
    config = before.learner.config if before and known == chosen else to_toml(chosen)
    own = _own_address(plan, chosen)
    pools = {name: _pool(name, pool, plan, chosen, before) for name, pool in plan.pools.items()}
    for name, gone in (before.pools if before else {}).items():
        if name not in pools and not _is_empty(folder, name):
            pools[name] = replace(gone, removed=True)
    return Desired(
        fleet=before.fleet if before else uuid.uuid4().hex[:6],
        generation=before.generation if before else 0,
        phase="up",
        learner=DesiredLearner(config, plan.place, own, _absolute(plan.key)),
        pools=pools,
    )


def differences(before: Desired | None, after: Desired) -> list[str]:
    """Return what changes, a line each; of a fleet that is begun or begins again, all that it has."""
    if before is None or before.phase != "up":
        where = after.learner.place.host or "here"
        lines = [f"learner: {where}, at {after.learner.address}"]
        pools = after.pools.items()
        return lines + [f"{name}: {pool_line(pool)}" for name, pool in pools if not pool.removed]
    lines = [
        f"learner: {change}; it goes on from a checkpoint" for change in _changed_settings(before, after)
    ]
    for name, pool in after.pools.items():
        was = before.pools.get(name)
        if was is None or (was.removed and not pool.removed):
            lines.append(f"{name}: new, {pool_line(pool)}")
        elif pool.removed and not was.removed:
            lines.append(f"{name}: is gone from the file, its workers leave")
        else:
            lines += [f"{name}: {change}" for change in _changed_pool(was, pool)]
    return lines


def no_pool_line(desired: Desired) -> list[str]:
    """Return a line that tells where no pool is wanted, and how workers come all the same."""
    if all(pool.removed for pool in desired.pools.values()):
        start = f"fleet worker --learner {desired.learner.address}"
        return [f"no pool is named, so no workers are started: {start} starts one by hand"]
    return []


def pool_line(pool: DesiredPool) -> str:
    """Return a pool in a few words."""
    if pool.target:
        many = f"{pool.min} to {pool.max} workers, {pool.target}"
    elif pool.count is None:
        many = "as many workers as there is room for"
    else:
        many = f"{pool.count} worker{'s' * (pool.count != 1)}"
    hosts = pool.options.get("hosts") or ()
    where = f" on {len(hosts)} host{'s' * (len(hosts) != 1)}" if hosts else ""
    return f"{many} of {pool.slots} slots, {pool.engine}{where}"


def _begun(run: Path) -> Settings | None:
    """Return the settings of a run that was begun by other means, None where there is none."""
    file = run / "config.toml"
    return resolve({}, file) if file.is_file() else None


def _has_begun(run: Path) -> bool:
    """Return whether the settings of a run that is trained here are fixed, or are being fixed now."""
    process = LocalLearner(run)
    return process.alive() or process.began()


def _with_what_stays(plan: FleetPlan, known: Settings | None, old: Settings | None) -> Settings:
    """Return the settings with port and first weights that stay the same whenever the learner is started.

    The port is that of the last start that was `known`; the weights are those of a run that has begun, `old`.
    """
    launch = plan.settings.launch
    port = launch.port
    if port in ("", "auto"):
        used = known.launch.port if known and known.launch.port.isdecimal() else ""
        port = used or (str(_USUAL_PORT) if plan.place.host else str(_free_port(launch.bind)))
    first = old.launch.init_from if old else launch.init_from
    if first and not old and not plan.place.host:
        first = str(best_checkpoint(first))
    run = replace(plan.settings.run, name="")  # it is the folder's
    return replace(plan.settings, run=run, launch=replace(launch, port=port, init_from=first))


def _free_port(bind: str) -> int:
    """Return the first of four ports that are free here."""
    usual: tuple[int, ...] = (
        () if bind in _LOOPBACK or bind.startswith("127.") else (_USUAL_PORT,)
    )  # nobody must know it
    for port in (*usual, *random.sample(_OTHER_PORTS, 100)):
        with ExitStack() as opened:
            try:
                for number in range(port, port + 4):
                    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
                    listening = opened.enter_context(socket.socket(family))
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listening.bind((bind, number))
            except OSError:
                continue
            return port
    raise UserError(f"no four free ports in a row on {bind}: give [learner] port, or another bind")


def _own_address(plan: FleetPlan, chosen: Settings) -> str:
    """Return where this machine reaches the learner."""
    bind, port = chosen.launch.bind, chosen.launch.port.partition(",")[0]
    if plan.place.host:
        return plan.address or f"{plan.place.host.rpartition('@')[2]}:{port}"
    return f"{'127.0.0.1' if bind in _EVERYWHERE else bind}:{port}"


def _pool(
    name: str, plan: PoolPlan, fleet: FleetPlan, chosen: Settings, before: Desired | None
) -> DesiredPool:
    """Return a pool that is wanted. Raises UserError where its machines cannot reach the learner."""
    keys, was = plan.keys, before.pools.get(name) if before else None
    if was and was.engine != keys.engine and not was.removed:
        raise UserError(f"pool {name} cannot change its engine, {was.engine}: give the new pool another name")
    options = asdict(plan.options)
    hosts = list(options.get("hosts", ()))
    left = [*was.former_hosts, *was.options.get("hosts", ())] if was else []
    guarded = not fleet.place.host and keyring_of(chosen.launch) is not None
    if guarded and not keys.key and KEY_VARIABLE not in os.environ:
        raise UserError(
            f"pool {name} has no key, and this learner lets in only whom it knows: fleet keys new workers "
            f'--out workers.key, then key = "workers.key" in [pools.{name}]'
        )
    return DesiredPool(
        engine=keys.engine,
        options={key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
        learner=keys.learner or _pool_address(name, plan, fleet, chosen),
        count=None if keys.target else keys.count if keys.count is not None else _room(plan),
        min=keys.min,
        max=keys.max,
        target=keys.target,
        slots=keys.slots,
        key=_absolute(keys.key),
        allow_env=keys.allow_env,
        drain_seconds=keys.drain_seconds,
        former_hosts=tuple(dict.fromkeys(host for host in left if host not in hosts)),
    )


def _absolute(path: str) -> str:
    """Return a path that other processes and hosts understand, "" of none."""
    return str(Path(path).expanduser().absolute()) if path else ""


def _room(plan: PoolPlan) -> int | None:
    """Return the count of a pool that names none: a worker, or what its hosts have room for."""
    return None if plan.hosts else 1


def _pool_address(name: str, plan: PoolPlan, fleet: FleetPlan, chosen: Settings) -> str:
    own = _own_address(fleet, chosen)
    if plan.keys.engine in ON_THIS_HOST or getattr(plan.options, "tunnel", False):
        return own
    if fleet.place.host or fleet.address:
        return fleet.address or own
    bind, port = chosen.launch.bind, chosen.launch.port.partition(",")[0]
    if bind in _EVERYWHERE:
        return f"{socket.gethostname()}:{port}"
    if bind in _LOOPBACK or bind.startswith("127."):
        raise UserError(
            f"pool {name} runs on other hosts, but the learner listens on {bind} alone: "
            "set bind in [learner], or tunnel = true in an ssh pool"
        )
    return f"{bind}:{port}"


def _check_free(folder: FleetFolder, chosen: Settings) -> None:
    """Raise UserError where another's learner trains the run, or this one could not listen."""
    if LocalLearner(folder.run).alive():
        # It holds its ports: let the new one be refused for its bind and keys alone.
        usable_ports(replace(chosen.launch, port="auto"), "auto")
        return
    if is_locked(folder.run / "lock"):
        raise UserError(
            f"another learner is training in {folder.run}: stop it, or give [learner] another name"
        )
    usable_ports(chosen.launch, str(_USUAL_PORT))


def _check_goes_on(plan: FleetPlan, folder: FleetFolder, old: Settings, chosen: Settings) -> None:
    """Raise UserError where a run is there that the file may not mean.

    That is one that is complete or was begun by other means, unless the file names more episodes than it has.
    """
    if plan.place.host:
        complete = folder.observed().get("phase") == "finished"
        done = old.run.planned_episodes if complete else 0
    else:
        complete = LocalLearner(folder.run).complete()
        done = _updates(folder.run) * old.run.episodes_per_update
    foreign = not folder.path.is_dir()
    more = plan.names_total and chosen.run.planned_episodes > done
    if ((complete or foreign) and not more) or chosen.run.planned_episodes < done:
        what = "is complete and" if complete else "was not begun by fleet up and" if foreign else "already"
        raise UserError(
            f"run {plan.name} {what} has {done:,} episodes: to train it further give [learner] a "
            "total_episodes above that, else another name"
        )


def going_on(folder: FleetFolder, desired: Desired) -> list[str]:
    """Return a line that tells where a run of this machine goes on that stands still now, if there is one."""
    process = LocalLearner(folder.run)
    if desired.learner.place.host or process.alive() or not process.began():
        return []
    run, at = settings_of(desired.learner.config).run, _updates(folder.run)
    return [
        f"learner: goes on with run {folder.run.name} at update {at:,} of {run.updates:,}, "
        f"to {run.planned_episodes:,} episodes"
    ]


def _updates(run: Path) -> int:
    """Return how many updates the newest checkpoint of a run has behind it."""
    from learner.checkpoints import newest_update  # a machine without a learner needs none of what it imports

    return newest_update(run)


def _is_empty(folder: FleetFolder, pool: str) -> bool:
    """Return whether a pool that is to go was seen to be gone."""
    seen: Mapping[str, Any] = folder.observed().get("pools", {}).get(pool, {})
    return bool(seen) and not seen["members"] and seen.get("count") == 0


def _changed_settings(before: Desired, after: Desired) -> Iterator[str]:
    old, new = settings_of(before.learner.config), settings_of(after.learner.config)
    for was, now in ((old.run, new.run), (old.ppo, new.ppo), (old.launch, new.launch)):
        for entry in fields(was):
            if (had := getattr(was, entry.name)) != (has := getattr(now, entry.name)):
                yield f"{entry.name} {had} -> {has}"


def _changed_pool(was: DesiredPool, now: DesiredPool) -> Iterator[str]:
    for name in ("count", "min", "max", "target", "drain_seconds"):
        if (had := getattr(was, name)) != (has := getattr(now, name)):
            yield f"{name} {_shown(had)} -> {_shown(has)}"
    for name in ("learner", "slots", "key", "allow_env"):
        if (had := getattr(was, name)) != (has := getattr(now, name)):
            yield f"{name} {_shown(had)} -> {_shown(has)}: its workers are replaced as they finish"
    for name, has in now.options.items():
        had = was.options.get(name)
        if _plain(had) == _plain(has):
            continue
        if name == "hosts":
            added, gone = set(has) - set(had or ()), set(had or ()) - set(has)
            yield f"{len(added)} more hosts, {len(gone)} fewer"
        else:
            yield f"{name} {_shown(had)} -> {_shown(has)}, for workers that start from now on"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    return "all there is room for" if value is None else repr(value) if isinstance(value, str) else str(value)
