"""`python -m deploy.pretrained`: ships a run's policy, trains one again, keeps cards and docs together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from deploy.exits import Exit, complain
from deploy.pretrained import FOLDER, shipped
from deploy.pretrained.card import EVALUATION_EPISODES, command_of, read_card, to_text, with_cyborg
from protocol.errors import FleetError, UserError

PAGE = Path("docs/defenders.md")
BEGIN, END = "<!-- cards: python -m deploy.pretrained docs -->", "<!-- end of cards -->"

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
Folder = Annotated[Path, typer.Option("--folder", help="Where policies and cards lie.")]
Episodes = Annotated[int, typer.Option("--episodes", help="Fresh episodes of each cell.")]


@app.command()
def ship(run: str, name: str, folder: Folder = FOLDER, episodes: Episodes = EVALUATION_EPISODES) -> None:
    """Make the best policy of RUN, a finished one, the shipped policy NAME; play its final evaluation."""
    from deploy.pretrained.making import markdown
    from deploy.pretrained.making import ship as make

    card = make(run, name, folder, episodes, _say)
    typer.echo(markdown([card]))
    _say(f"{folder}/{name}.safetensors and .toml; next: python -m deploy.pretrained docs")


@app.command()
def cyborg(name: str, files: list[Path], folder: Folder = FOLDER) -> None:
    """Add what `fleet evaluate pretrained:NAME --env cyborg --json FILE` measured to a card."""
    card = read_card(name, folder)
    for file in files:
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
        card = with_cyborg(card, plain)
    (folder / f"{name}.toml").write_text(to_text(card), encoding="utf-8")


@app.command()
def docs(page: Path = PAGE, folder: Folder = FOLDER) -> None:
    """Write each card's command by the present defaults, and all tables to docs/defenders.md."""
    from deploy.pretrained.making import markdown

    cards = [read_card(name, folder) for name in shipped(folder)]
    cards = [replace(card, command=command_of(card.settings)) for card in cards]
    for card in cards:
        (folder / f"{card.name}.toml").write_text(to_text(card), encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise UserError(f"{page} lacks the lines {BEGIN} and {END}, between which the tables stand")
    page.write_text(f"{before}{BEGIN}\n{markdown(cards)}\n{END}{after}", encoding="utf-8")


@app.command()
def retrain(
    name: str,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the training (default: the card's).")] = None,
    run_name: Annotated[str, typer.Option("--name", help="Of the run (default: NAME-seed-N).")] = "",
    folder: Folder = FOLDER,
    episodes: Episodes = EVALUATION_EPISODES,
) -> None:
    """Train NAME again from scratch by its card's command; show both tables side by side."""
    from deploy.pretrained import load
    from deploy.pretrained.making import retrain as again
    from deploy.pretrained.making import side_by_side

    load(name, folder)  # an unknown name is told as everywhere
    card = read_card(name, folder)
    chosen = card.seed if seed is None else seed
    cells = again(card, chosen, run_name or f"{name}-seed-{chosen}", episodes, _say)
    typer.echo("\n".join(side_by_side(card, cells, f"seed {chosen}")))


def _say(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    try:
        status = app(standalone_mode=False) or Exit.OK
    except UserError as error:
        status = complain(str(error), Exit.USAGE)
    except FleetError as error:
        status = complain(str(error), Exit.FAILED)
    except (typer.Abort, KeyboardInterrupt):
        status = complain("interrupted", Exit.INTERRUPTED)
    except typer.exceptions.TyperException as error:
        status = complain(error.format_message(), Exit.USAGE)
    raise SystemExit(int(status))
