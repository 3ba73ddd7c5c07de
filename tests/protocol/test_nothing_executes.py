"""Nothing from the network is executed, unpickled or opened: the program's text is searched for what could.

Each exception is named with its reason, and one that is not needed any more fails, too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "learner", "rollout_worker", "deploy")
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
IMPORTERS = {"import_module", "find_loader", "spec_from_file_location", "run_path", "run_module"}
ALLOWED_IMPORTERS = {
    "deploy/engines/catalogue.py": "engines of this program, by a fixed list",
    "deploy/tether.py": "the module that this program starts its own worker with",
    "deploy/engines/wheel.py": "packages of this program, by a fixed list",
    "deploy/export/run_evaluation.py": "the challenge's evaluation.py, in the folder of an exported agent",
    "learner/step_hook.py": "--step-hook, on the learner's own command line",
    "rollout_worker/__main__.py": "numpy.random",
    "rollout_worker/environments/cage2/cyborg_package.py": "CybORG, by fixed names",
    "rollout_worker/environments/registry.py": "--allow-env, on the worker's own command line",
}
OPENERS = {
    "open",
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "unlink",
    "mkdir",
    "rmtree",
    "fromfile",
}
HEARS_THE_NETWORK = (
    "protocol/codec.py",
    "protocol/schema.py",
    "protocol/messages.py",
    "protocol/step_messages.py",
    "protocol/templates.py",
    "protocol/zap.py",
    "learner/admission.py",
    "learner/barrier.py",
    "learner/collector.py",
    "learner/connections.py",
    "learner/episode_fault.py",
    "learner/membership.py",
    "learner/orders.py",
    "learner/queries.py",
    "learner/reception.py",
    "learner/registry.py",
    "learner/roster.py",
    "learner/shared_frames.py",
    "learner/synchronous.py",
    "rollout_worker/environments/registry.py",
    "rollout_worker/contact.py",
    "rollout_worker/heartbeats.py",
    "rollout_worker/host.py",
    "rollout_worker/membership.py",
    "rollout_worker/open_episodes.py",
    "rollout_worker/player.py",
    "rollout_worker/slot_policies.py",
    "rollout_worker/tickets.py",
    "rollout_worker/versions.py",
)
"""Modules that handle what a message says, none of which opens a file."""


def sources() -> list[Path]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 60
    return sorted(files)


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call with the last part of what is called."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def where(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"


def test_no_module_that_unpickles_is_imported() -> None:
    found = []
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [where(file, node) for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
    assert found == []


def test_nothing_is_evaluated() -> None:
    found = []
    for file in sources():
        for name, node in calls(file):
            plain = isinstance(node.func, ast.Name)  # re.compile, module.eval and the like are something else
            found += [where(file, node)] if plain and name in FORBIDDEN_CALLS else []
    assert found == []


def test_what_could_unpickle_is_told_not_to() -> None:
    found = []
    for file in sources():
        for name, node in calls(file):
            if not isinstance(node.func, ast.Attribute) or not isinstance(node.func.value, ast.Name):
                continue
            options = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            module = node.func.value.id
            if (module, name) == ("torch", "load") and options.get("weights_only") is not True:
                found.append(where(file, node))
            if module in ("np", "numpy") and name == "load" and options.get("allow_pickle") is not False:
                found.append(where(file, node))
            if module == "msgpack" and name.startswith("unpack") and "ext_hook" in options:
                found.append(where(file, node))
    assert found == []


def test_modules_are_imported_by_name_only_where_the_user_or_the_program_names_them() -> None:
    found = {
        str(file.relative_to(ROOT))
        for file in sources()
        for name, node in calls(file)
        if name in IMPORTERS and not all(isinstance(argument, ast.Constant) for argument in node.args)
    }
    constant = {
        str(file.relative_to(ROOT)) for file in sources() for name, _ in calls(file) if name in IMPORTERS
    }
    assert found <= ALLOWED_IMPORTERS.keys(), found - ALLOWED_IMPORTERS.keys()
    assert constant == ALLOWED_IMPORTERS.keys()


@pytest.mark.parametrize("module", HEARS_THE_NETWORK)
def test_what_hears_the_network_opens_no_file(module: str) -> None:
    file = ROOT / module
    assert [where(file, node) for name, node in calls(file) if name in OPENERS] == []


def test_a_worker_imports_no_module_that_its_command_line_did_not_allow(tmp_path: Path) -> None:
    """The learner names an environment in every way that Gymnasium would take for a module to import."""
    (tmp_path / "trap.py").write_text(
        "import pathlib\n"
        "import gymnasium\n"
        f"pathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n"
        "gymnasium.register('Trap-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=9)\n"
    )
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from protocol.errors import UserError
from protocol.specs import EnvironmentSpec, Spaces
from rollout_worker.environments import registry
spaces = Spaces(4, "float32", 2, False, 100)
hook = {{"entry_point": "trap:x", "vector_entry_point": "trap:x", "wrappers": ["trap:x"]}}
names = [("trap:Trap-v0", {{}}), ("trap", {{}}), ("trap:cage2", {{}}), ("Trap-v0", {{}})]
names += [("CartPole-v1", hook)]
for name, options in names:
    for try_it in (
        lambda: registry.build(EnvironmentSpec(name, options, spaces), 1),
        lambda: registry.describe(name, options),
    ):
        try:
            try_it()
        except UserError:
            continue
        raise SystemExit(f"{{name}} {{options}} was made")
assert "trap" not in sys.modules
registry.allow(["trap"])
registry.build(EnvironmentSpec("Trap-v0", {{}}, spaces), 1)
print("allowed by name")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout == "allowed by name\n", result.stdout + result.stderr
