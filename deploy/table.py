"""Tables in plain text: the same on a terminal, in a file and where no other library is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import typer


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `colour` is that of the whole line, on a terminal."""

    cells: Sequence[str]
    colour: str | None = None


@dataclass(slots=True)
class Table:
    """Columns under headings; one that begins with ">" is aligned to the right, an empty one is left out."""

    headings: Sequence[str]
    rows: list[Row] = field(default_factory=list)

    def add(self, *cells: str, colour: str | None = None) -> None:
        """Add a row."""
        self.rows.append(Row(cells, colour))

    def lines(self, width: int, *, colours: bool) -> list[str]:
        """Return the table, each line cut at this width."""
        right = [heading.startswith(">") for heading in self.headings]
        names = [heading.removeprefix(">") for heading in self.headings]
        columns = [place for place in range(len(names)) if any(row.cells[place] for row in self.rows)]
        widths = {c: max(len(names[c]), *(len(row.cells[c]) for row in self.rows)) for c in columns}

        def line(cells: Sequence[str]) -> str:
            parts = (cells[c].rjust(widths[c]) if right[c] else cells[c].ljust(widths[c]) for c in columns)
            return "  ".join(parts).rstrip()[:width]

        def shown(row: Row) -> str:
            text = line(row.cells)
            return typer.style(text, fg=row.colour) if colours and row.colour else text

        heading = line(names)
        return [typer.style(heading, bold=True) if colours else heading, *map(shown, self.rows)]
