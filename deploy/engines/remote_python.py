"""The Python of a host that runs workers: found there and checked, or installed there.

An installation is a virtual environment of its own, FOLDER/VERSION-BUILD: a newer one never changes the files
of workers that run. One that nobody uses any more is removed when another is made.
"""

from __future__ import annotations

import logging
import shlex
from base64 import encodebytes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import protocol
from deploy.engines.remote import InHome, Word, word
from deploy.engines.ssh_scripts import HostError, Ssh
from deploy.engines.wheel import Package

logger = logging.getLogger(__name__)

_OLDEST = (3, 11)
_INSTALL_SECONDS = 1800.0

_PROBE = """
import os, sys
sys.path = [path for path in sys.path if path]
print("python %d.%d" % sys.version_info[:2])
cores = len(os.sched_getaffinity(0))
try:
    limit, period = open("/sys/fs/cgroup/cpu.max").read().split()
    cores = min(cores, -(-int(limit) // int(period)))
except Exception:
    pass
print("cores %d" % cores)
try:
    import protocol
    print("version %s" % protocol.VERSION)
except Exception:
    pass
"""
"""Runs on any Python 3."""


@dataclass(frozen=True, slots=True)
class HostPython:
    """What workers of a host run on."""

    python: Word
    cores: int
    """That its processes may use: their affinity, and the quota of their control group."""


def in_home(path: str) -> Word:
    """Return a path of a host as a word of a command; ~/ is the home folder there."""
    return InHome(path[2:]) if path.startswith("~/") else path


def find(ssh: Ssh, host: str, python: str) -> HostPython:
    """Return the host's `python`, with this release in it. HostError where that is not so."""
    facts = _probed(ssh, host, in_home(python), python)
    if "version" not in facts:
        raise HostError(
            host, f"{python} there has no rollout-fleet: set install = true, or install it by hand"
        )
    _check_version(host, facts["version"], f"{python} there")
    return HostPython(in_home(python), int(facts["cores"]))


def install(
    ssh: Ssh, host: str, python: str, package: Package, folder: str, pip_options: Sequence[str]
) -> HostPython:
    """Return an environment of the host with `package` in it, made with its `python` unless it is there.

    HostError where that cannot be done.
    """
    root = in_home(folder.rstrip("/"))
    name = f"{protocol.VERSION}-{package.build}"
    environment = in_home(f"{folder.rstrip('/')}/{name}")
    if ssh.run(host, f"[ -e {word(environment)}/complete ] && echo complete || :").strip() != "complete":
        _probed(ssh, host, in_home(python), python)
        logger.info("%s: installing %s, which takes a while", host, package.file_name)
        script = install_script(word(root), name, word(in_home(python)), package, pip_options)
        ssh.run(host, script, _INSTALL_SECONDS)
    inside = f"{folder.rstrip('/')}/{name}/bin/python"
    facts = _probed(ssh, host, in_home(inside), inside)
    _check_version(host, facts.get("version", "none"), package.file_name)
    return HostPython(in_home(inside), int(facts["cores"]))


def install_script(root: str, name: str, python: str, package: Package, pip_options: Sequence[str]) -> str:
    """Return the script that makes the environment `name` in `root`; these and `python` are shell words."""
    file = shlex.quote(PurePosixPath(package.file_name).name)
    return f"""
root={root}
made=$root/{name}
mkdir -p "$root" && exec 9> "$root/lock" || exit 1
flock -w {_INSTALL_SECONDS:.0f} 9 || exit 1
[ -e "$made/complete" ] && exit 0
fail() {{
    free=$(df -Pk "$root" | awk 'NR == 2 {{ print $4 }}')
    rm -rf "$made"
    [ "${{free:-99999}}" -ge 20000 ] || echo "No space left on device, at $root" >&2  # not everybody says so
    exit 1
}}
rm -rf "$made"
{python} -c 'import ensurepip, venv' 2> /dev/null || {{
    echo {python} cannot make virtual environments: install its venv package, "(Debian: python3-venv)" >&2
    exit 1
}}
{python} -m venv "$made" >&2 || fail
base64 -d > "$made"/{file} << 'END OF PACKAGE' || fail
{encodebytes(package.content).decode()}END OF PACKAGE
"$made/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --retries 1 \\
    {shlex.join(pip_options)} "$made"/{file} >&2 || fail
rm "$made"/{file}
"$made/bin/python" -P -c 'import rollout_worker.worker' || fail
: > "$made/complete" || fail
for other in "$root"/*-*; do
    [ "$other" = "$made" ] || grep -qsF "$other/" /proc/[0-9]*/cmdline || rm -rf "$other"
done
"""


def _probed(ssh: Ssh, host: str, python: Word, shown: str) -> dict[str, str]:
    """Return what a Python of the host says of itself. HostError where there is none, or one too old."""
    script = f"command -v {word(python)} > /dev/null || exit 0\n{word(python)} -c {shlex.quote(_PROBE)}"
    said = ssh.run(host, script)
    facts = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    if "python" not in facts:
        raise HostError(host, f"no {shown} there: name a Python with python = PATH")
    if tuple(map(int, facts["python"].split("."))) < _OLDEST:
        raise HostError(
            host,
            f"{shown} there is Python {facts['python']}, a worker needs {_OLDEST[0]}.{_OLDEST[1]} or newer: "
            "name another with python = PATH",
        )
    return facts


def _check_version(host: str, theirs: str, where: str) -> None:
    if theirs != protocol.VERSION:
        raise HostError(
            host,
            f"{where} has rollout-fleet {theirs}, this fleet is {protocol.VERSION}: "
            "set install = true, or bring both to one release",
        )
