"""What a fleet.toml may say, and the line and key that each mistake is told with."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.engines.catalogue import ENGINES, options_class
from deploy.engines.local import LocalOptions
from deploy.fleet.file import read_fleet_file
from deploy.fleet.hosts import expand_hosts
from deploy.fleet.plan import PoolKeys
from deploy.options import settings as setting_names
from deploy.settings import settings_of, to_toml
from protocol.errors import UserError
from protocol.keys import Keyring

WHOLE = """\
[learner]
name = "cage2-lab"
bind = "0.0.0.0"
insecure = true
total_episodes = 1000
red = "sleep"
env-option = { green = true }

[pools.lab]
engine = "local"
count = 2
pin = true

[pools.spot-new]
engine = "local"
min = 0
max = 64
target = "learner_busy:0.9"
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "fleet.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_whole_file(tmp_path: Path) -> None:
    plan = read_fleet_file(written(tmp_path, WHOLE))
    assert (plan.name, plan.place.host, plan.address) == ("cage2-lab", "", "")
    assert plan.settings.run.red_agents == ("sleep",)
    assert plan.settings.run.environment_options == (("green", True),)
    assert plan.settings.launch.insecure
    assert plan.pools["lab"].keys.count == 2
    assert plan.pools["lab"].options == LocalOptions(pin=True)
    assert (plan.pools["spot-new"].keys.max, plan.pools["spot-new"].keys.count) == (64, None)


def test_a_file_without_a_name_names_its_run_and_a_config_beside_it_is_covered_by_its_keys(
    tmp_path: Path,
) -> None:
    (tmp_path / "run.toml").write_text("seed = 7\ntotal_episodes = 5\n")
    plan = read_fleet_file(written(tmp_path, '[learner]\nconfig = "run.toml"\ntotal_episodes = 9\n'))
    assert plan.name == "fleet"
    assert (plan.settings.run.seed, plan.settings.run.total_episodes) == (7, 9)
    assert plan.names_total
    assert read_fleet_file(written(tmp_path, '[learner]\nconfig = "run.toml"\n')).names_total
    assert not read_fleet_file(written(tmp_path, "[learner]\nseed = 7\n")).names_total


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("count = 2", "cuont = 2", "fleet.toml:11: pools.lab.cuont is no key here: did you mean count?"),
        ("count = 2", "count = -2", "fleet.toml:11: pools.lab.count is -2; it must be from 0"),
        ("count = 2", "count = 1.5", "fleet.toml:11: pools.lab.count is 1.5: it must be a whole number"),
        ("count = 2", "count = true", "fleet.toml:11: pools.lab.count is True: it must be a whole number"),
        ("count = 2", "slots = 0", "fleet.toml:11: pools.lab.slots is 0; it must be from 1"),
        (
            "count = 2",
            'drain-seconds = "x"',
            "fleet.toml:11: pools.lab.drain_seconds is 'x': it must be a number",
        ),
        (
            "count = 2",
            "drain_seconds = 1\ndrain-seconds = 9",
            "fleet.toml:12: pools.lab.drain-seconds is told twice",
        ),
        (
            'red = "sleep"',
            'red-agent = "sleep"\nred = "sleep"',
            "fleet.toml:7: learner.red says again what red-agent",
        ),
        ("pin = true", 'pin = "yes"', "fleet.toml:12: pools.lab.pin is 'yes': it must be true or false"),
        ('engine = "local"', 'engine = "k8s"', "fleet.toml:10: pools.lab.engine is 'k8s': it must be"),
        ('[pools.lab]\nengine = "local"', "[pools.lab]", "fleet.toml:9: pools.lab names no engine"),
        ("[pools.lab]", "[pools.2]", "fleet.toml:9: pools.2 is no name of a pool"),
        ("[pools.lab]", "[pols.lab]", "fleet.toml:9: pols is no key here: did you mean pools?"),
        ("[pools.lab]", "[pools.lab", "fleet.toml is not valid TOML: Expected ']'"),
        ("max = 64", "", "fleet.toml:18: pools.spot-new.target: target = "),
        ("max = 64", "max = 64\ncount = 1", "fleet.toml:18: pools.spot-new.count contradicts target"),
        ("min = 0", "min = 65", "fleet.toml:16: pools.spot-new.min is 65; it must be at most max"),
        ("learner_busy:0.9", "busy", 'target = "busy": write "learner_busy:0.9"'),
        ("total_episodes = 1000", "total_episodes = 0", "fleet.toml:5: learner.total_episodes is 0; it must"),
        ("total_episodes", "total_episoeds", "fleet.toml:5: learner.total_episoeds is no key here: did you"),
        ("total_episodes = 1000", "workers = 2", "fleet.toml:5: learner.workers is no key here"),
        (
            "total_episodes = 1000",
            'address = "gpu"',
            "fleet.toml:5: learner.address is 'gpu': give HOST:PORT",
        ),
        ("total_episodes = 1000", 'config = "no.toml"', "no.toml cannot be read"),
        ('red = "sleep"', 'env = "nope"', "fleet.toml:1: learner: environment 'nope' is unknown"),
        ("total_episodes = 1000", 'env = "CartPole-v1"', "fleet.toml:6: learner.red belongs to cage2"),
        (
            "total_episodes = 1000",
            'observation = "x"',
            "fleet.toml:5: learner.observation is 'x'; it must",
        ),
        (
            "total_episodes = 1000",
            'allow_env = ".x"',
            "fleet.toml:5: learner.allow_env .x cannot be",
        ),
        (
            "total_episodes = 1000",
            'mode = "sync"\nstep-hook = "no.such:look"',
            "fleet.toml:6: learner.step-hook no.such:look cannot be imported",
        ),
        ("green = true", "gren = true", "fleet.toml:1: learner: environment cage2 has no option 'gren'"),
        ('"sleep"', '"x"', "unknown red agent 'x'"),
    ],
)
def test_each_mistake_is_told_with_its_line_and_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in WHOLE
    with pytest.raises(UserError) as told:
        read_fleet_file(written(tmp_path, WHOLE.replace(old, new, 1)))
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_what_a_learner_elsewhere_takes_is_for_it_to_say(tmp_path: Path) -> None:
    text = WHOLE.replace("total_episodes = 1000", 'host = "gpu-box"\nallow_env = "only_there"')
    assert read_fleet_file(written(tmp_path, text)).settings.launch.allow_env == ("only_there",)


def test_key_files_are_read_at_once(tmp_path: Path) -> None:
    key, plain = tmp_path / "worker.key", tmp_path / "plain"
    Keyring(tmp_path / "ring").new("lab", "worker", key)
    plain.write_text("x = 1\n")
    plain.chmod(0o600)

    def keyed(file: Path) -> Path:
        return written(tmp_path, WHOLE.replace("count = 2", f'key = "{file}"'))

    assert read_fleet_file(keyed(key)).pools["lab"].keys.key == str(key)
    for file in (tmp_path / "none", plain):
        with pytest.raises(UserError, match=r"fleet\.toml:11: pools\.lab\.key: "):
            read_fleet_file(keyed(file))
    for file, said in ((plain, r"key: .*plain is no key"), (key, "key is a worker's key")):
        text = WHOLE.replace("insecure = true", f'key = "{file}"')
        with pytest.raises(UserError, match=r"fleet\.toml:4: learner\." + said):
            read_fleet_file(written(tmp_path, text))


@given(st.text(max_size=60))
def test_whatever_a_file_holds_is_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    try:
        read_fleet_file(written(folder, text))
    except UserError as error:
        assert "fleet.toml" in str(error)


ANYTHING: st.SearchStrategy[str] = st.one_of(
    st.sampled_from(
        [
            *("true", "-1", "1.5", "nan", "-inf", "1e400", "9" * 400, "9" * 5000, "1979-05-27", '""'),
            *('"a\\u0000b"', '"\\u001b[2J"', '"~no-such-user/x"', "'" + "x" * 5000 + "'", "[" * 20_000),
            *("[]", "{}", "[1]", "[true]", "[[1]]", "{ a = 1 }", "{ a = { b = 1 } }", "[{ a = 1 }]"),
            *("{ a = 1979-05-27 }", "{ a = [1979-05-27] }", "{ a = [{ b = true }] }", "{ a = [[true]] }"),
        ]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="'"), max_size=9).map(
        lambda text: f"'{text}'"
    ),
)
KEYS = sorted({"host", "python", "ssh_config", "address", "key", "config", *setting_names()})
POOL_KEYS = [
    f"{engine}.{entry.name}"
    for engine in ENGINES
    for kind in (PoolKeys, options_class(engine))
    for entry in fields(kind)
]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(KEYS + POOL_KEYS), ANYTHING)
def test_a_value_of_any_type_is_taken_or_told_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "typed"
    folder.mkdir(exist_ok=True)
    engine, _, name = key.rpartition(".")
    text = f"[learner]\n{name} = {value}\n"
    if engine:
        told = "" if name == "engine" else f'engine = "{engine}"\n'
        text = f"[pools.lab]\n{told}{name} = {value}\n"
    try:
        plan = read_fleet_file(written(folder, text))
    except UserError as error:
        assert "fleet.toml" in str(error)
    else:
        assert settings_of(to_toml(plan.settings)) == replace(
            plan.settings, run=replace(plan.settings.run, name="")
        )


@pytest.mark.parametrize("text", ["a." * 5000 + "a = 1", "a = " + "[" * 50_000, "a = " + "{a=" * 50_000])
def test_what_is_nested_deeply_is_refused(tmp_path: Path, text: str) -> None:
    for table in ("", "[learner]\n", "[learner]\nenvironment_options."):
        with pytest.raises(UserError, match=r"fleet\.toml"):
            read_fleet_file(written(tmp_path, table + text))


def test_a_long_line_of_spaces_takes_no_longer_than_another(tmp_path: Path) -> None:
    file = written(tmp_path, "[learner]\n" + " " * 1_000_000 + "\n  seed  = true\n")
    with pytest.raises(UserError, match=r"fleet\.toml:3: learner\.seed is True"):
        read_fleet_file(file)


def test_host_ranges() -> None:
    assert expand_hosts(["cpu[01-03,07]", "gpu"]) == ("cpu01", "cpu02", "cpu03", "cpu07", "gpu")
    assert expand_hosts(["r[1-2]-n[09-10].lab"]) == ("r1-n09.lab", "r1-n10.lab", "r2-n09.lab", "r2-n10.lab")
    assert expand_hosts(["me@a[1-2]", "me@a1"]) == ("me@a1", "me@a2")


@pytest.mark.parametrize(
    "pattern",
    ["", "a b", "cpu[3-1]", "cpu[", "cpu[]", "cpu[a-b]", "-oProxyCommand=x", "a[0-99999999]", "a,b"],
)
def test_what_is_no_host(pattern: str) -> None:
    with pytest.raises(UserError):
        expand_hosts([pattern])
