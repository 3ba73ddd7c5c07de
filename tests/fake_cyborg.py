"""Packages that look like a CybORG, written to a folder: that of each challenge, under either rules."""

import sys
from pathlib import Path
from types import ModuleType

_STAND_IN = '''
"""As much of CybORG, its agents and its wrapper as the adapter touches; shows random bits."""
import random
from gym import Env, spaces
import paramiko

class StandIn(Env):
    def __init__(self, *arguments, **options):
        self.agents = options.get("agents") or (options["env"].agents if "env" in options else {})
        self.actions = []
        random.random()  # building the environment draws too

    def reset(self):
        self.actions.clear()
        return [0] * 52

    def step(self, action):
        self.actions.append(action)
        return [random.getrandbits(1) for _ in range(52)], -random.random(), False, {}

    def get_last_action(self, agent):
        return "ExploitRemoteService 10.0.0.12"

    def get_ip_map(self):
        return {"User1": "10.0.0.1", "User4": "10.0.0.12"}
'''
_RULES = {
    "CybORG/Agents/Wrappers/__init__.py": """
from CybORG.stand_in import StandIn as ChallengeWrapper
class BlueTableWrapper:
    def _interpret_connections(self, activity):
        return "None" if {since_july} else "Scan"
""",
    "CybORG/Shared/Enums.py": """
class ProcessVersion:
    parse_string = staticmethod(lambda text: text if {keeps_version} else "UNKNOWN")
""",
    "CybORG/Simulator/Session.py": """
class RedAbstractSession:
    pass
if {forgets_ports}:
    RedAbstractSession.clearports = lambda self, address: None
""",
}
_OTHERS = {
    1: ("Shared/Scenarios/Scenario1b.yaml", "Agents/Wrappers/ChallengeWrapper.py"),
    3: (
        "Simulator/Scenarios/scenario_files/Scenario2.yaml",
        "Simulator/Scenarios/DroneSwarmScenarioGenerator.py",
        "Agents/Wrappers/ChallengeWrapper.py",
    ),
    4: ("Simulator/Scenarios/EnterpriseScenarioGenerator.py", "Agents/Wrappers/EnterpriseMAE.py"),
}


def forget_cyborg() -> dict[str, ModuleType]:
    """Let the next import look for CybORG again; returns what had been imported."""
    names = [name for name in sys.modules if name.split(".")[0] == "CybORG"]
    return {name: sys.modules.pop(name) for name in names}


def write_package(folder: Path, files: dict[str, str]) -> Path:
    """Write files and the `__init__.py` of each of their folders; returns `folder`, to be put on the path."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        for parent in file.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
    return folder


def other_challenge(folder: Path, number: int) -> Path:
    """Write the marks of the CybORG of CAGE Challenge 1, 3 or 4, which cannot be imported."""
    files = dict.fromkeys((f"CybORG/{name}" for name in _OTHERS[number]), "")
    return write_package(folder, {**files, "CybORG/__init__.py": "raise RuntimeError('imported')"})


def challenge_2(
    folder: Path, *, since_july: bool = True, keeps_version: bool = True, forgets_ports: bool = True
) -> Path:
    """Write a CybORG that has the marks of CAGE Challenge 2, by default those of the current rules."""
    marks = {"since_july": since_july, "keeps_version": keeps_version, "forgets_ports": forgets_ports}
    agents = ("SleepAgent", "B_lineAgent", "RedMeanderAgent", "GreenAgent")
    files = {
        "CybORG/stand_in.py": _STAND_IN,
        "CybORG/__init__.py": "from CybORG.stand_in import StandIn as CybORG",
        "CybORG/Agents/__init__.py": "\n".join(
            f"from CybORG.stand_in import StandIn as {name}" for name in agents
        ),
        "CybORG/Agents/Wrappers/ChallengeWrapper.py": "",
        "CybORG/Shared/Scenarios/Scenario2.yaml": "",
        **{name: text.format(**marks) for name, text in _RULES.items()},
    }
    return write_package(folder, files)
