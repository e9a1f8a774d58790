"""The blocks that show results: text in the terminal, HTML on a page and in a notebook."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # the verbs that answer at once do not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

LONG = 32  # characters; a longer text is broken into lines
LINE = 70  # characters of a terminal's line; a wider table takes the width of the page
NUMBER = re.compile(r"\W*\d[\d.,:%±· ]*")  # such as -0.5, 97.69 ± 0.08% or 4,800  10.00%


class Block:
    """What a page, a notebook or the terminal shows; one without content is false."""

    kind: ClassVar[str]  # the name of its macro in blocks.html

    def _repr_html_(self) -> str:
        from mnist_lightning.report.pages import notebook  # here, since Jinja takes a while

        return notebook([self])


@dataclass(frozen=True)
class Facts(Block):
    """Names and values, such as ``{"Epochs": "10"}``."""

    values: Mapping[str, str]
    kind: ClassVar[str] = "facts"

    def __bool__(self) -> bool:
        return len(self.values) > 0

    def __str__(self) -> str:
        width = max(map(len, self.values), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.values.items())

    def items(self) -> Iterator[tuple[str, str, bool]]:
        """Yield each name, its value, and whether that takes lines of its own."""
        for name, value in self.values.items():
            yield name, value, len(value) > LONG or "\n" in value


@dataclass(frozen=True)
class Table(Block):
    """A table.

    Args:
        columns: The headings.
        rows: The cells of each row, as text; the first one is the row's heading.
        caption: A text below the table.
        title: A text above it.
        bars: For each row the length of a bar in its last cell, in [0, 1]; none without any.

    Raises:
        ValueError: If a row does not have one cell per column.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    title: str = ""
    bars: Sequence[float] = ()
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(self.columns)} columns need as many cells, got {row}")

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    def __str__(self) -> str:
        return "\n".join(
            [*filter(None, [self.title]), *self._lines(), *filter(None, [self.caption])]
        )

    def _lines(self) -> list[str]:
        """Return the headings and the rows, the columns as wide as their longest cell."""
        columns = []
        for style, *cells in zip(self.styles(), self.columns, *self.rows, strict=True):
            width = max(map(len, cells))
            adjust = str.rjust if style == "number" else str.ljust
            columns.append([adjust(cell, width) for cell in cells])
        return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]

    def styles(self) -> list[str]:
        """Return the style of each column: ``number``, ``text`` or ``long``."""
        return [_style([row[place] for row in self.rows]) for place in range(len(self.columns))]

    @property
    def wide(self) -> bool:
        """Whether it takes the width of the page."""
        return self.width > LINE

    @property
    def width(self) -> int:
        """How many characters wide it is as text."""
        return max(map(len, self._lines()))


def _style(cells: Sequence[str]) -> str:
    if any(len(cell) > LONG for cell in cells):
        return "long"
    # A column of numbers may have words in some rows, such as "pruned".
    return "number" if any(map(NUMBER.fullmatch, cells)) else "text"


@dataclass(frozen=True)
class Picture(Block):
    """A figure or a photo; ``figures.svg`` makes one from a matplotlib figure.

    Args:
        content: The content of an SVG, PNG or JPEG file.
        alt: What it shows, for those who cannot see it.
        caption: A text below it.
        wide: Whether it takes the width of the page; otherwise two stand side by side.
        title: A text above it.
    """

    content: bytes
    alt: str
    caption: str = ""
    wide: bool = False
    title: str = ""
    kind: ClassVar[str] = "picture"

    def __str__(self) -> str:
        return self.alt

    @property
    def mime(self) -> str:
        """The type of the file."""
        if self.content.startswith(b"\x89PNG"):
            return "image/png"
        return "image/jpeg" if self.content.startswith(b"\xff\xd8") else "image/svg+xml"


@dataclass(frozen=True)
class Card:
    """An image with texts below it.

    Args:
        image: Grey ``(h, w)``, RGB ``(h, w, 3)`` or RGBA ``(h, w, 4)``, of any size.
        label: What is said of it in a word, such as "4".
        line: One or two small lines below that, such as "predicted 4, 99%".
        flagged: Whether it has an orange frame: a mistake, or a doubtful answer.
        probabilities: ``(10,)`` in [0, 1], drawn as bars; none without any.
        new_row: Whether it begins a new row of cards.
    """

    image: "NDArray[np.uint8]"
    label: str
    line: str
    flagged: bool = False
    probabilities: "Sequence[float] | NDArray[Any]" = ()
    new_row: bool = False

    def __str__(self) -> str:
        return f"{self.label}  {self.line}".replace("\n", "  ")


@dataclass(frozen=True)
class Gallery(Block):
    """Cards side by side, with a text above and a text below them.

    Args:
        cards: The cards.
        caption: The text below.
        title: The text above.
        folded: Whether a page hides the cards until the title is clicked.
    """

    cards: Sequence[Card]
    caption: str = ""
    title: str = ""
    folded: bool = False
    kind: ClassVar[str] = "gallery"

    def __bool__(self) -> bool:
        return len(self.cards) > 0

    def __str__(self) -> str:
        return "\n".join(filter(None, [self.title, *map(str, self.cards), self.caption]))


@dataclass(frozen=True)
class Words(Block):
    """What the words of a test's report mean.

    Args:
        word: What its classes are called: digit or class.
    """

    word: str
    kind: ClassVar[str] = "words"
