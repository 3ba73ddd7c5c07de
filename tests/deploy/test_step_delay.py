"""`--step-delay`: refused where malformed, kept in config.toml, part of the environment, fixed for a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.environment import environment_spec
from deploy.settings import resolve, resolve_resumed, to_toml
from protocol.errors import UserError


@pytest.mark.parametrize("environment", ["cage2", "CartPole-v1"])
def test_a_delay_reaches_the_environment_by_way_of_the_run_s_configuration(
    tmp_path: Path, environment: str
) -> None:
    text = "straggler:8ms,50ms,0.05,slow=0.1x4"
    file = tmp_path / "config.toml"
    file.write_text(to_toml(resolve({"step_delay": text, "environment": environment})))
    assert environment_spec(resolve({}, file).run).step_delay == text
    assert resolve_resumed({}, file).run.step_delay == text
    with pytest.raises(UserError, match="--step-delay cannot change when a run is resumed"):
        resolve_resumed({"step_delay": "constant:1ms"}, file)


def test_a_malformed_delay_is_refused_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('step_delay = "constant:10"\n')
    for given, config in (({"step_delay": "constant:10"}, None), ({}, file)):
        with pytest.raises(UserError, match="--step-delay constant:10: '10' is no TIME; give constant:TIME"):
            resolve(given, config)
    assert environment_spec(resolve({"step_delay": ""}).run).step_delay == ""
