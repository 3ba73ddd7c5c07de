"""The CybORG that is installed: whether it is the one of CAGE Challenge 2, and which rules it plays by.

Whatever else has that name is told by the files of its folder, before any of it is imported; the rules by how
three small functions answer, in which the two versions of the challenge's simulator differ.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium

from protocol.errors import UserError

COMMITS = {"current": "9421c8e", "leaderboard": "606813b"}
"""Of github.com/cage-challenge/cage-challenge-2, by the rules that they have."""
_HOW_TO_GET_IT = (
    "clone cage-challenge/cage-challenge-2 from GitHub and install its CybORG folder (docs/cyborg.md)"
)
_SCENARIO, _WRAPPER = "Shared/Scenarios/Scenario2.yaml", "Agents/Wrappers/ChallengeWrapper.py"
_OTHER_CHALLENGES = {  # by a file that the later ones lack, or have elsewhere
    "Simulator/Scenarios/EnterpriseScenarioGenerator.py": 4,
    "Simulator/Scenarios/DroneSwarmScenarioGenerator.py": 3,
    "Shared/Scenarios/Scenario1b.yaml": 1,
}


class Cyborg(NamedTuple):
    """What the adapter takes from the package."""

    environment: Any
    """The class CybORG."""
    agents: ModuleType
    challenge_wrapper: Any
    scenario: Path
    """Scenario2.yaml."""


def find() -> Path:
    """Return the folder of the package CybORG of CAGE Challenge 2, without importing it.

    Raises UserError, in one line, where there is none, or another challenge's, or an unrelated package.
    """
    spec = _spec("CybORG")
    if spec is None:
        unrelated, found = _spec("cyborg"), ""
        if unrelated and unrelated.origin:  # a mere folder of that name is no package
            found = f"; the package cyborg at {unrelated.origin} is an unrelated one"
        raise UserError(f"CybORG is not installed{found}: {_HOW_TO_GET_IT}; never pip install cyborg")
    folder = _folder(spec)
    if (folder / _SCENARIO).is_file() and (folder / _WRAPPER).is_file():
        return folder
    if (folder / "CybORG" / _SCENARIO).is_file():
        raise UserError(f"{folder} holds CybORG's source, not the package: PYTHONPATH={folder} finds it")
    for mark, challenge in _OTHER_CHALLENGES.items():
        if (folder / mark).is_file():
            raise UserError(
                f"the CybORG in {folder} is that of CAGE Challenge {challenge}, not 2: {_HOW_TO_GET_IT}"
            )
    raise UserError(
        f"the package in {folder} is not CAGE Challenge 2's CybORG ({_SCENARIO} or {_WRAPPER} is missing; "
        f"pip install cyborg brings an unrelated package): {_HOW_TO_GET_IT}"
    )


def load(rules: str) -> Cyborg:
    """Import CybORG. Raises UserError as `find`, and where it has other rules or what it needs is missing."""
    folder = find()
    try:
        with _stand_ins():
            package = importlib.import_module("CybORG")
            agents = importlib.import_module("CybORG.Agents")
            wrappers = importlib.import_module("CybORG.Agents.Wrappers")
    except ImportError as error:
        raise UserError(
            f"the CybORG in {folder} cannot be imported ({error}): pip install PyYAML prettytable"
        ) from error
    if (installed := installed_rules()) != rules:
        has = f"the {installed} rules, not the {rules} ones" if installed else f"not the {rules} rules"
        instead = f", or give --rules {installed}" if installed else ""
        raise UserError(f"the CybORG in {folder} has {has}: check out commit {COMMITS[rules]} there{instead}")
    return Cyborg(package.CybORG, agents, wrappers.ChallengeWrapper, folder / _SCENARIO)


def installed_rules() -> str:
    """Return "current" or "leaderboard"; "" for a state of the code before, between or beside them.

    Three corrections tell: since July 2022 the wrapper takes a decoy's service alone for no activity; 3ead7fd
    keeps versions that it does not know by name, such as a restored mail server's; 9421c8e forgets the ports
    of an earlier scan.
    """
    table = importlib.import_module("CybORG.Agents.Wrappers").BlueTableWrapper
    if table._interpret_connections(None, [{"Service Name": "decoy"}]) != "None":
        return ""
    version = importlib.import_module("CybORG.Shared.Enums").ProcessVersion
    session = importlib.import_module("CybORG.Simulator.Session").RedAbstractSession
    return {(True, True): "current", (False, False): "leaderboard"}.get(
        (version.parse_string("any version") == "any version", hasattr(session, "clearports")), ""
    )


def _spec(name: str) -> ModuleSpec | None:
    """Return where a package is, None without one; a stale import of it is no reason to fail."""
    try:
        return find_spec(name)
    except ValueError:
        return None


def _folder(spec: ModuleSpec) -> Path:
    return Path(next(iter(spec.submodule_search_locations or ()), spec.origin or "."))


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Let CybORG import what it was written for.

    Of gym it takes Env and the spaces alone, which gymnasium has; gym itself does not know today's numpy. It
    imports paramiko for machines on a cloud, and never calls it in simulation.
    """
    stand_ins = {"gym": gymnasium} | ({} if _spec("paramiko") else {"paramiko": ModuleType("paramiko")})
    kept = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
