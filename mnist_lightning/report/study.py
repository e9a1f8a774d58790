"""One self-contained HTML page for any study, in the style of the report: cards, tables, figures and images."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.files import write_atomic
from mnist_lightning.report.html import render

LONG = 32  # characters; longer cells are broken into lines
NUMBER = re.compile(r"\W*\d")  # it may start with a sign or a bracket


class Table(NamedTuple):
    """A table; without rows, the page leaves it out.

    Args:
        columns: The headings.
        rows: The cells of each row, as text; the first one is the row's heading.
        caption: A text above the table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def styles(self) -> list[str]:
        """Return the style of each column: ``number``, ``text`` or ``long``."""
        return [_style(cells) for _, *cells in zip(self.columns, *self.rows, strict=True)]


class Picture(NamedTuple):
    """A figure as SVG; ``figures.svg`` makes one from a matplotlib figure.

    Args:
        svg: The content of the SVG file.
        alt: What it shows, for those who cannot see it.
        caption: A text below it.
        wide: Whether it takes the width of the page; otherwise two stand side by side.
    """

    svg: bytes
    alt: str
    caption: str = ""
    wide: bool = False


class Gallery(NamedTuple):
    """Images with a label and a line of text below each; without images, the page leaves it out.

    Args:
        images: ``(N, 28, 28)``.
        labels: A label for each image.
        lines: A small line for each image, such as "predicted 4, 99%".
        caption: A text below the gallery.
    """

    images: NDArray[np.uint8]
    labels: Sequence[str]
    lines: Sequence[str]
    caption: str = ""

    def tiles(self) -> list[tuple[NDArray[np.uint8], str, str]]:
        """Return each image with its texts."""
        return list(zip(self.images, self.labels, self.lines, strict=True))


def write_page(
    folder: Path,
    title: str,
    lead: str,
    headline: Mapping[str, str],
    sections: Mapping[str, Sequence[Table | Picture | Gallery]],
) -> Path:
    """Write the page of a study and return its path, ``index.html`` in the folder.

    Args:
        folder: The folder to write to, made if there is none.
        title: The heading of the page.
        lead: A line below the heading.
        headline: The names and values of the cards at the top.
        sections: What each section shows, by its heading; the page leaves out empty sections.

    Raises:
        ValueError: If a row does not have one cell per column, or an image has no label or line.
        OSError: If the folder cannot be written to.
    """
    shown = {heading: kept for heading, blocks in sections.items() if (kept := [*filter(_has_content, blocks)])}
    html = render("study.html", title=title, lead=lead, headline=headline, sections=shown)
    folder.mkdir(parents=True, exist_ok=True)
    # A file name may hold characters that UTF-8 cannot encode.
    write_atomic(folder / "index.html", html.encode(errors="replace"))
    return folder / "index.html"


def _style(cells: Sequence[str]) -> str:
    # A column of numbers may have words in some rows, such as "pruned".
    return "long" if max(map(len, cells)) > LONG else "number" if any(map(NUMBER.match, cells)) else "text"


def _has_content(block: Table | Picture | Gallery) -> bool:
    return isinstance(block, Picture) or len(block.rows if isinstance(block, Table) else block.images) > 0
