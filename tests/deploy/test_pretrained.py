"""Shipped policies: their files and cards, what becomes of a damaged one, and a run on its way to be one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from deploy import pretrained
from deploy.app import run_command
from deploy.engines.wheel import running_package
from deploy.playable import Playable
from deploy.pretrained import FOLDER, load, resolve, shipped
from deploy.pretrained.__main__ import BEGIN, END, app, docs
from deploy.pretrained.card import command_of, merged, parse, read_card, to_text, with_cyborg
from deploy.pretrained.making import difference, markdown, measure, retrain, ship, side_by_side
from deploy.pretrained.policy_file import read, write
from deploy.settings import resolve as settled
from deploy.settings import to_toml
from learner.checkpoints import load as load_checkpoint
from learner.evaluation import Cell
from protocol.errors import UserError
from tests.deploy.made_checkpoint import made_checkpoint

ROOT = Path(__file__).parents[2]
Spoil = Callable[[bytes], bytes]


def _silent(text: str) -> None:
    assert text


@pytest.fixture
def playable(tmp_path: Path) -> Playable:
    return Playable.of(load_checkpoint(made_checkpoint(tmp_path / "checkpoint", red_agents=["b_line"])))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of made-up weights."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "done"
    told: dict[str, Any] = {"red_agents": ["b_line"], "seed": 7, "total_episodes": 800, "gamma": 0.98}
    made_checkpoint(folder / "checkpoints" / "update-00003", **told)
    (folder / "config.toml").write_text(to_toml(settled({**told, "bind": "0.0.0.0"})))
    (folder / "metrics.csv").write_text("update,episodes,steps,seconds\n1,400,40000,2.5\n2,400,40000,4.25\n")
    (folder / "outcome").write_text("finished 2\n")
    return folder


def test_a_file_gives_back_what_was_written_and_needs_no_torch(playable: Playable, tmp_path: Path) -> None:
    file = tmp_path / "made.safetensors"
    write(file, playable)
    found = read(file)
    assert (found.environment, found.policy, found.seed, found.version) == (
        playable.environment, playable.policy, 5, 3,
    )  # fmt: skip
    for name in playable.policy.shapes():
        np.testing.assert_array_equal(found.arrays[name], playable.arrays[name])
    program = "import sys; from deploy.pretrained import load; from pathlib import Path\n"
    program += f"load('made', Path({str(tmp_path)!r})); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[:100],
        lambda data: b"",
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        lambda data: data.replace(b"b_line", b"b_lime", 1),
        lambda data: safetensors.numpy.save({"a": np.zeros(3)}),
    ],
)
def test_damage_is_one_line(playable: Playable, tmp_path: Path, spoil: Spoil) -> None:
    file = tmp_path / "made.safetensors"
    write(file, playable)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UserError, match="is damaged, or no policy of this program") as caught:
        read(file)
    assert "\n" not in str(caught.value)


def test_a_policy_that_sees_something_else_than_this_release_shows_is_refused(
    playable: Playable, tmp_path: Path
) -> None:
    file = tmp_path / "other.safetensors"
    options = {**playable.environment.options, "observation": "bits"}
    write(file, replace(playable, environment=replace(playable.environment, options=options)))
    with pytest.raises(UserError, match="now shows 52 numbers"):
        read(file)
    options["observation"] = "clouds"
    write(file, replace(playable, environment=replace(playable.environment, options=options)))
    with pytest.raises(UserError, match=r"does not fit this release: .*clouds"):
        read(file)


def test_an_unknown_name_is_told_those_that_are_shipped(playable: Playable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pretrained:b-line: this release ships none"):
        load("b-line", tmp_path)
    for name in ("b_line", "meander"):
        write(tmp_path / f"{name}.safetensors", playable)
    with pytest.raises(UserError, match="did you mean pretrained:b_line"):
        load("b-line", tmp_path)
    with pytest.raises(UserError, match="this release ships b_line, meander"):
        load("../b_line", tmp_path)


def test_commands_take_a_policy_and_those_that_need_a_critic_say_so(
    playable: Playable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setattr(pretrained.load, "__defaults__", (tmp_path,))
    write(tmp_path / "b_line.safetensors", playable)
    told = ["evaluate", "pretrained:b_line", "--episodes", "3", "--episode-length", "9", "--red", "meander"]
    assert run_command([*told, "--json", "found.json"]) == 0
    assert "note: it never trained against meander" in capsys.readouterr().err
    assert json.loads(Path("found.json").read_text())["returns"][0]["episodes"] == 3
    assert run_command(["export", "pretrained:b_line", "agent"]) == 0
    capsys.readouterr()
    for command in (["train", "--init-from", "pretrained:b_line"], ["hash", "pretrained:b_line"]):
        assert run_command(command) == 2
        assert "is an actor alone, without critic" in capsys.readouterr().err


def test_a_run_is_shipped_with_a_card_that_says_how_to_make_it_again(run: Path, tmp_path: Path) -> None:
    card = ship("done", "made", tmp_path, 4, _silent)
    assert card.command == "fleet train --red-agent b_line --seed 7 --total-episodes 800 --gamma 0.98"
    assert (card.episodes, card.steps, card.wall_seconds, card.version, card.updates) == (
        800, 80_000, 4.2, 3, 2,
    )  # fmt: skip
    assert read_card("made", tmp_path) == replace(card, returns=_rounded(card.returns))
    assert {(cell.red, cell.steps, cell.greedy) for cell in card.returns} == {
        (red, steps, greedy)
        for red in ("b_line", "sleep")
        for steps in (30, 50, 100)
        for greedy in (True, False)
    }  # fmt: skip
    played = measure(load("made", tmp_path), 4, _silent)
    assert played == card.returns, "the file plays what the run's checkpoint does, the same each time"
    assert "0.0.0.0" not in to_text(card), "a card says nothing of the machine's addresses"


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("outcome", "stopped", "is not finished"),
        ("config.toml", 'env = "CartPole-v1"', "what is shipped defends CAGE-2"),
        ("config.toml", 'init_from = "other"', "ship a run that began from scratch"),
    ],
)
def test_only_a_finished_run_from_scratch_is_shipped(run: Path, file: str, text: str, why: str) -> None:
    (run / file).write_text(text)
    with pytest.raises(UserError, match=why):
        ship("done", "made", run, 1, _silent)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"rules": "leaderboard", "red_agents": ["b_line", "meander", "sleep"], "hidden": ["128", "64"]},
        {"lag": "exact:1", "episode_length": ["30", "100"], "observation": "bits+scans", "actions": "full"},
        {"environment_options": ["green=true", "note=two words"], "normalise_advantages": False},
        {"env": "CartPole-v1", "learning_rate": "0.01"},
        {"mode": "sync", "workers": "2", "slots": "5"},
    ],
)
def test_the_command_of_settings_means_the_same(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settled({"environment" if name == "env" else name: value for name, value in told.items()})
    assert _meant_by(command_of(settings), monkeypatch) == settings


def _meant_by(command: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the settings that the command line itself makes of it."""
    import shlex

    from deploy.commands import train

    found = []

    def note(settings: Any) -> None:
        found.append(settings)
        raise UserError("noted")

    monkeypatch.setattr(train, "_environment", note)
    assert run_command(shlex.split(command)[1:]) == 2
    return found[0]


def test_a_card_takes_in_what_the_original_simulator_measured(run: Path, tmp_path: Path) -> None:
    card = ship("done", "made", tmp_path, 2, _silent)
    row = {"red": "b_line", "steps": 30, "mean": -3.5, "se": 0.2, "episodes": 100, "greedy": True}
    result = {"rules": "current", "embedded": {"returns": []}, "cyborg": {"returns": [row]}}
    added = with_cyborg(card, result)
    assert added.returns[-1] == Cell("cyborg", "b_line", 30, -3.5, 0.2, 100, True)
    assert len(with_cyborg(added, {"returns": [row]}).returns) == len(card.returns) + 1
    assert "| CybORG | b_line | greedy | -3.50 ± 0.20 |" in markdown([added])
    assert parse(to_text(added), "here").returns == _rounded(added.returns)
    with pytest.raises(UserError, match="of the leaderboard rules"):
        with_cyborg(card, {**result, "rules": "leaderboard"})
    with pytest.raises(UserError, match="no result of fleet evaluate"):
        with_cyborg(card, {"cyborg": {}})
    with pytest.raises(UserError, match="here is no card"):
        parse("name = 1", "here")


def test_both_tables_are_shown_with_their_differences(run: Path, tmp_path: Path) -> None:
    card = ship("done", "made", tmp_path, 3, _silent)
    better = [replace(cell, mean=cell.mean + 5 * (cell.se or 0)) for cell in card.returns]
    lines = side_by_side(card, better, "seed 8")
    assert lines[-1] == "largest difference: 3.5 combined standard errors"  # 5 / sqrt 2
    assert any("(+3.5 se)" in line for line in lines)
    assert max(map(len, lines)) <= 85
    worse = [replace(cell, mean=cell.mean - 1, se=0.0) for cell in card.returns]
    certain = replace(card, returns=tuple(replace(cell, se=0.0) for cell in card.returns))
    assert side_by_side(certain, worse, "seed 8")[-1].endswith(
        "; 12 cells differ without an error to compare with"
    )
    assert difference(Cell("cage2", "a", 1, 0.0, 0.0, 9), Cell("cage2", "a", 1, 0.0, 0.0, 9)) == 0.0
    assert len(merged(card.returns, card.returns)) == len(card.returns)


def test_a_finished_repetition_is_measured_not_trained_again(run: Path, tmp_path: Path) -> None:
    card = ship("done", "made", tmp_path, 2, _silent)
    assert retrain(card, 7, "done", 2, _silent) == card.returns
    with pytest.raises(UserError, match="another run than the card's command with seed 8"):
        retrain(card, 8, "done", 2, _silent)


def test_the_page_is_written_from_the_cards(run: Path, tmp_path: Path) -> None:
    card = ship("done", "made", tmp_path, 2, _silent)
    old = replace(card, command="fleet train --forgotten 3")
    (tmp_path / "made.toml").write_text(to_text(old))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    docs(page, tmp_path)
    assert page.read_text() == f"before\n{BEGIN}\n{markdown([read_card('made', tmp_path)])}\n{END}\nafter\n"
    assert read_card("made", tmp_path).command == card.command
    page.write_text("nothing")
    with pytest.raises(UserError, match="lacks the lines"):
        docs(page, tmp_path)


def test_the_module_is_a_command() -> None:
    assert {command.callback.__name__ for command in app.registered_commands if command.callback} == {
        "ship", "cyborg", "docs", "retrain",
    }  # fmt: skip


def test_the_page_tells_what_the_cards_tell() -> None:
    text = (ROOT / "docs" / "defenders.md").read_text(encoding="utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0].strip()
    cards = [read_card(name, FOLDER) for name in shipped()]
    assert shown == (markdown(cards) if cards else ""), "python -m deploy.pretrained docs"


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_policy_and_its_card_are_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    playable, card = resolve(f"pretrained:{name}"), read_card(name, FOLDER)
    assert (card.name, card.seed, card.version) == (name, playable.seed, playable.version)
    options = playable.environment.options
    assert (card.rules, card.observation, card.actions) == (
        options["rules"], options["observation"], options["actions"],
    )  # fmt: skip
    assert card.red_agents == tuple(
        dict.fromkeys(s["red_agent"] for s in playable.environment.train_scenarios)
    )
    assert _meant_by(card.command, monkeypatch) == card.settings, "python -m deploy.pretrained docs"
    cells = [cell for cell in card.returns if cell.environment == "cage2"]
    assert {cell.episodes for cell in cells} == {2000}
    assert len(cells) == 2 * 3 * len({*card.red_agents, "sleep"})
    few = measure(playable, 60, _silent)
    for old, new in zip(cells, few, strict=True):
        if old.red != "sleep":  # seldom anything happens: few episodes tell no error
            apart = difference(old, new)
            assert apart is not None and abs(apart) < 5, "what it plays is what its card says"


def test_files_and_cards_travel_in_the_wheel() -> None:
    names = zipfile.ZipFile(io.BytesIO(running_package().content)).namelist()
    for name in shipped():
        assert f"deploy/pretrained/{name}.safetensors" in names
        assert f"deploy/pretrained/{name}.toml" in names
    configured = (ROOT / "pyproject.toml").read_text()
    assert '"deploy.pretrained" = ["*.safetensors", "*.toml"]' in configured


def _rounded(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    return tuple(Cell(**{**asdict(c), "mean": round(c.mean, 4), "se": round(c.se or 0.0, 4)}) for c in cells)
