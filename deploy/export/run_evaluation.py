"""Run the challenge's own evaluation.py, as it is, with this agent in the place of its BlueLoadAgent.

`python run_evaluation.py`, where CybORG can be imported. What that needs has changed since: gymnasium stands
in for gym, which does not know today's numpy, and a blank for paramiko, which simulation does not call;
stable-baselines3 is not needed.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from blue_agent import BlueAgent  # type: ignore[import-not-found]  # it will be beside this file

_EVALUATION = "Evaluation/evaluation.py"
_SCENARIO, _WRAPPER = "Shared/Scenarios/Scenario2.yaml", "Agents/Wrappers/ChallengeWrapper.py"


def prepare() -> Path:
    """Let CybORG be imported and find this agent; return the path of its evaluation.py."""
    if find_spec("gymnasium"):
        import gymnasium

        sys.modules["gym"] = gymnasium
    if not find_spec("paramiko"):
        sys.modules["paramiko"] = ModuleType("paramiko")
    load_agent = "CybORG.Agents.SimpleAgents.BlueLoadAgent"
    sys.modules[load_agent] = ModuleType(load_agent)
    vars(sys.modules[load_agent])["BlueLoadAgent"] = BlueAgent
    package = find_spec("CybORG")
    if package is None or not package.submodule_search_locations:
        sys.exit("CybORG cannot be imported: put its folder, the one with setup.py, in PYTHONPATH")
    folder = Path(package.submodule_search_locations[0])
    for name in (_EVALUATION, _SCENARIO, _WRAPPER):
        if not (folder / name).is_file():
            sys.exit(
                f"the package in {folder} is not CAGE Challenge 2's CybORG ({name} is missing): clone "
                "cage-challenge/cage-challenge-2 from GitHub and put its CybORG folder, "
                "the one with setup.py, in PYTHONPATH"
            )
    return folder / _EVALUATION


if __name__ == "__main__":
    evaluation = prepare()
    os.chdir(evaluation.parent)  # it asks git which commit it is of
    runpy.run_path(str(evaluation), run_name="__main__")
