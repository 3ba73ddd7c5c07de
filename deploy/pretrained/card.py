"""A shipped policy's card: how it was trained, and what it is worth, as a TOML file beside it."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from deploy.config import LaunchConfig
from deploy.options import settings as catalogue
from deploy.settings import Settings, resolve, settings_of, to_toml
from learner.config import RunConfig
from learner.evaluation import Cell
from protocol.errors import UserError

EVALUATION_SEED, EVALUATION_EPISODES = 2026, 2000
"""Of the figures on a card: no training and no choice ever uses them."""
_TITLE = "# pretrained:{name}: how it was trained and what it is worth; docs/defenders.md tells more.\n"
_SETTINGS = "\n[settings]\n"
_MACHINE = {"name", "heartbeat_seconds", "liveness_seconds", "stuck_after_seconds", "max_losses"}


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of one shipped policy."""

    name: str
    command: str
    """Trains another from scratch."""
    seed: int
    episodes: int
    steps: int
    """Environment steps of the training."""
    wall_seconds: float
    """From the learner's start to its last update."""
    cores: int
    processor: str
    version: int
    """The update whose weights these are, the best by the run's own evaluations."""
    updates: int
    rules: str
    observation: str
    actions: str
    red_agents: tuple[str, ...]
    """It was trained against."""
    date: date
    release: str
    returns: tuple[Cell, ...]
    """Over fresh episodes under EVALUATION_SEED, in environment cage2 (the embedded one) and cyborg."""
    settings: Settings
    """All of the training's, whatever the defaults are now."""


def command_of(settings: Settings) -> str:
    """Return the command that trains with these settings: the seed, and what differs from the defaults."""
    words = ["fleet", "train"]
    for name, value in _told(settings).items():
        flag = catalogue()[name].flags[0]
        if isinstance(value, bool):
            words.append(flag.split("/")[not value])
        elif name == "environment_options":
            words += [word for key, item in value for word in (flag, f"{key}={json.dumps(item)}")]
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def _told(settings: Settings) -> dict[str, Any]:
    """Return the values that a command must tell, by field, or `lag`."""
    usual, found = resolve({"environment": settings.run.environment}), dict[str, Any]()
    for part in ("run", "ppo", "launch"):
        now, before = getattr(settings, part), getattr(usual, part)
        for name in (field.name for field in fields(now) if field.name not in _MACHINE):
            if name == "seed" or getattr(now, name) != getattr(before, name):
                found[name] = getattr(now, name)
    if settings.run.environment != RunConfig().environment:
        found = {"environment": settings.run.environment} | found
    if found.pop("exact", False):
        found = {name: found[name] for name in found if name not in ("max_lag", "order")}
        found["lag"] = f"exact:{settings.run.max_lag}"
    return found


def repeatable(settings: Settings) -> Settings:
    """Return the settings without what belongs to a machine or to one start."""
    launch = LaunchConfig(workers=settings.launch.workers, slots=settings.launch.slots)
    return replace(settings, run=replace(settings.run, name=""), launch=launch)


def to_text(card: Card) -> str:
    """Return the TOML text of a card."""
    lines = [_TITLE.format(name=card.name)]
    for name in (field.name for field in fields(card) if field.name not in ("returns", "settings")):
        value = getattr(card, name)
        plain = value.isoformat() if isinstance(value, date) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{name} = {plain}")
    lines += [f"evaluation_seed = {EVALUATION_SEED}", "returns = ["]
    for cell in card.returns:
        row = {field.name: getattr(cell, field.name) for field in fields(cell)}
        row |= {"mean": round(cell.mean, 4), "se": round(cell.se or 0.0, 4)}
        lines.append("  { " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in row.items()) + " },")
    return "\n".join([*lines, "]\n"]) + _SETTINGS + to_toml(card.settings)


def parse(text: str, where: str) -> Card:
    """Return the card of a TOML text. Raises UserError where it is none."""
    head, _, settings = text.partition(_SETTINGS)
    try:
        plain: dict[str, Any] = tomllib.loads(head)
        plain["returns"] = tuple(Cell(**row) for row in plain["returns"])
        plain["red_agents"] = tuple(plain["red_agents"])
        known = {field.name for field in fields(Card)} - {"settings"}
        return Card(**{name: plain[name] for name in known}, settings=settings_of(settings))
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{where} is no card of a policy: {error}") from None


def read_card(name: str, folder: Path) -> Card:
    """Return the card of a shipped policy. Raises UserError where there is none, or it is damaged."""
    file = folder / f"{name}.toml"
    try:
        return parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def with_cyborg(card: Card, plain: Mapping[str, Any]) -> Card:
    """Return the card with what `fleet evaluate --env cyborg --json` measured; same cells are replaced.

    Raises UserError where it is no such result.
    """
    found = plain.get("cyborg", plain)
    try:
        rules = plain.get("rules", card.rules)
        rows = [*found["returns"], *found.get("sampled_returns", ())]
        cells = [Cell(environment="cyborg", **row) for row in rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"no result of fleet evaluate --env cyborg --json: {error!r}") from None
    if rules != card.rules:
        raise UserError(f"these figures are of the {rules} rules, {card.name} was trained under {card.rules}")
    return replace(card, returns=merged(card.returns, cells))


def merged(before: Sequence[Cell], after: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return all cells, of two for the same place the later one."""
    places = {(c.environment, c.greedy, c.red, c.steps): c for c in (*before, *after)}
    return tuple(places.values())
