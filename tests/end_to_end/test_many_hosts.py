"""A whole fleet over several hosts: the learner and a pool reached by ssh, another pool here."""

from __future__ import annotations

import json
import os
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rollout_worker.environments.cage2.compilation import CACHE_FOLDER
from tests.end_to_end.fleet_processes import Fleet
from tests.namespaces import Namespaces, Sshd, needs_sshd

pytestmark = needs_sshd

FILE = """
[learner]
name = "wide"
host = "gpu"
python = "{python}"
ssh_config = "{config}"
bind = "{gpu}"
address = "{gpu}:5555"
insecure = true
total_episodes = 4_000_000
episodes_per_update = 20
episode_length = 30

[pools.lab]
engine = "ssh"
hosts = [{hosts}]
per_host = 1
python = "{python}"
ssh_config = "{config}"
connect_seconds = 2
slots = 5

[pools.here]
engine = "local"
count = 1
slots = 5
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Namespaces]:
    with Namespaces(2) as hosts:
        yield hosts
        for host in hosts:
            for pid in host.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_learner_and_workers_over_ssh(fleet: Fleet, hosts: Namespaces) -> None:
    servers: dict[str, Sshd] = {}
    for name, host in zip(("gpu", "cpu1"), hosts, strict=True):
        home = fleet.folder / f"home of {name}"
        home.mkdir()
        servers[name] = host.run_sshd(
            fleet.folder / name,
            environment={
                "HOME": str(home),
                "NUMBA_CACHE_DIR": str(CACHE_FOLDER.parent),
                "PYTHONPATH": sysconfig.get_path("purelib"),
            },
        )
    config = fleet.folder / "ssh_config"
    away = (
        servers["gpu"].client_config("cpu2").replace(hosts[0].address, hosts.address.replace(".254", ".99"))
    )
    config.write_text("".join([server.client_config(name) for name, server in servers.items()] + [away]))
    before = [host.pids() for host in hosts]

    def write(names: str) -> None:
        text = FILE.format(python=sys.executable, config=config, gpu=hosts[0].address, hosts=names)
        (fleet.folder / "fleet.toml").write_text(text)

    write('"cpu[1-2]"')
    output = fleet.run("up", "-f", "fleet.toml", status=1)
    assert "learner: gpu, at" in output
    assert "lab: as many workers as there is room for of 5 slots, ssh on 2 hosts" in output
    assert "joined in" in output and "on cpu1" in output
    assert "cpu2: does not answer" in output and "put aside" in output, output
    state = fleet.folder / "runs" / "wide" / "fleet"
    pools = json.loads((state / "observed.json").read_text())["pools"]
    assert [member["host"] for member in pools["lab"]["members"] if member["state"] == "ready"] == ["cpu1"]

    write('"cpu1"')
    output = fleet.run("up", "-f", "fleet.toml")
    assert "lab: 0 more hosts, 1 fewer" in output and "all there: the learner and 2 workers" in output
    output = fleet.run("down", "wide")
    assert "is down" in output
    for host, earlier in zip(hosts, before, strict=True):
        servers_only = [pid for pid in host.pids() if pid not in earlier and b"sshd" not in command_line(pid)]
        assert servers_only == []


def command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"sshd, gone"
