"""`fleet train` and `fleet learner`: a run with workers of this machine, and one that waits for any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.access import keyring_of
from deploy.config import LEARNER_PORT, LaunchConfig
from deploy.exits import Exit
from deploy.json_file import JsonFile
from deploy.local import deal_slots, usable_cores
from deploy.options import with_settings
from deploy.runs import best_checkpoint, find_run, new_run
from deploy.settings import Settings, resolve, resolve_resumed
from protocol.errors import UserError

if TYPE_CHECKING:
    from protocol.addresses import Ports
    from protocol.specs import EnvironmentSpec

_CROWDED = 4
"""Workers for each core, above which it is said."""

_Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.toml", help="Settings; the command line wins over them."),
]
_Resume = Annotated[
    str | None, typer.Option("--resume", metavar="RUN", help="Go on with this run, by name or folder.")
]


@with_settings()
def train(
    given: Mapping[str, Any], config: _Config = None, resume: _Resume = None, json: JsonFile = None
) -> Exit:
    """Train: a learner and workers for the cores of this machine, started and ended together."""
    settings, folder = _prepare(given, config, resume)
    launch, cores = settings.launch, usable_cores()
    slots = deal_slots(settings.run.n_envs, launch.workers, launch.slots)
    ports, environment = usable_ports(launch, "auto"), _environment(settings)
    if len(slots) > _CROWDED * cores:
        typer.echo(f"fleet: {len(slots)} workers share {cores} cores: slow, and much memory", err=True)
    from deploy.environment import refuse_unplayable

    refuse_unplayable(environment)
    from deploy.run import run

    return run(
        settings, folder, environment, ports, resume=resume is not None, local_slots=slots, json_file=json
    )


@with_settings(without=("workers", "slots"))
def learner(
    given: Mapping[str, Any], config: _Config = None, resume: _Resume = None, json: JsonFile = None
) -> Exit:
    """Train with the workers that dial in: `fleet worker --learner HOST:PORT`, any number, at any time."""
    settings, folder = _prepare(given, config, resume)
    ports, environment = usable_ports(settings.launch, LEARNER_PORT), _environment(settings)
    from deploy.run import run

    return run(settings, folder, environment, ports, resume=resume is not None, json_file=json)


def usable_ports(launch: LaunchConfig, usual_port: str) -> Ports | None:
    """Return the ports to listen on, None for any; UserError, before torch is imported, where that fails."""
    import zmq

    from protocol.addresses import Ports
    from protocol.sockets.learner import bind_learner

    port = launch.port or usual_port
    ports = None if port == "auto" else Ports.parse(port)
    keyring = keyring_of(launch)
    security = keyring.learner() if keyring else None
    with (
        zmq.Context() as context,
        bind_learner(context, launch.bind, ports, insecure=launch.insecure, security=security),
    ):
        return ports


def _environment(settings: Settings) -> EnvironmentSpec:
    from deploy.environment import environment_spec

    return environment_spec(settings.run, settings.launch.allow_env)


def _prepare(given: Mapping[str, Any], config: Path | None, resume: str | None) -> tuple[Settings, Path]:
    """Return the settings and the folder of a run that is to begin or to go on. Raises UserError."""
    if resume is None:
        settings = resolve(given, config)
        if told := settings.launch.init_from:
            settings = replace(
                settings, launch=replace(settings.launch, init_from=str(best_checkpoint(told)))
            )
        return settings, new_run(settings.run.name, settings.run.environment)
    taken = {"--config": config, "--name": given.get("name"), "--init-from": given.get("init_from")}
    for flag in (flag for flag, value in taken.items() if value):
        raise UserError(f"{flag} cannot stand beside --resume, which takes it from the run: leave it out")
    folder = find_run(resume)
    settings = resolve_resumed(given, folder / "config.toml")
    _refuse_fewer(settings, folder)
    return settings, folder


def _refuse_fewer(settings: Settings, folder: Path) -> None:
    """Raise UserError where a run is to end before the update that it has reached."""
    from learner.checkpoints import newest_update

    if (reached := newest_update(folder)) > settings.run.updates:
        done = reached * settings.run.episodes_per_update
        raise UserError(
            f"--total-episodes is {settings.run.total_episodes:,}, but run {folder.name} has trained on "
            f"{done:,} already: give more than that"
        )
