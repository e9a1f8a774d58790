"""Figure of the digits that were found in picture files."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mnist_lightning.report.figures import CORRECT, WRONG
from mnist_lightning.report.text import number

COLUMNS = 4
CARD_WIDTH, CARD_HEIGHT = 3.4, 1.5  # in sides of a picture
PALE = "#9CC4DD"
COPY_LEAST, COPY_MOST = 400, 1600  # pixels of the longer side of an annotated copy
GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}


class FoundDigit(NamedTuple):
    """A digit that was found in a picture, and the network's answer."""

    name: str  # of the file
    surroundings: NDArray[np.uint8]  # that part of the picture: grey (h, w), RGB (h, w, 3) or RGBA (h, w, 4)
    box: tuple[float, float, float, float]  # left, top, right, bottom in the surroundings' pixels
    image: NDArray[np.uint8]  # (28, 28), the input of the network
    probabilities: NDArray[np.floating]  # (10,)
    certain: bool = True


def found_digits(digits: Sequence[FoundDigit], total: int) -> Figure:
    """Draw a card for each digit: where it was found, what the network saw, and the three most likely digits.

    Args:
        digits: The digits to draw, at least one.
        total: The number of digits found, for the title.
    """
    columns = min(COLUMNS, len(digits))
    rows = -(-len(digits) // columns)
    width, height = max(2, columns) * CARD_WIDTH, rows * CARD_HEIGHT + 0.5  # the title needs two cards
    figure = Figure(figsize=(0.95 * width, 0.95 * height))
    axis = figure.add_axes((0, 0, 1, 1))
    for place, digit in enumerate(digits):
        row, column = divmod(place, columns)
        x, y = column * CARD_WIDTH + 0.1, row * CARD_HEIGHT + 0.8
        h, w = digit.surroundings.shape[:2] / np.max(digit.surroundings.shape[:2])
        left, top = x + (1 - w) / 2, y + (1 - h) / 2
        # Grey shows through the transparent parts of a picture: ink of any colour stands out from it.
        axis.add_patch(Rectangle((left, top), w, h, color="0.6", zorder=-1))
        axis.imshow(digit.surroundings, extent=(left, left + w, top + h, top), **GREY)
        x0, y0, x1, y1 = np.array(digit.box) / max(digit.surroundings.shape[:2])
        edge = CORRECT if digit.certain else WRONG
        axis.add_patch(Rectangle((left + x0, top + y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge))
        axis.imshow(digit.image, extent=(x + 1.1, x + 2.1, y + 1, y), interpolation="nearest", **GREY)
        axis.text(x, y - 0.07, _short(digit.name), fontsize=9, va="bottom", parse_math=False)
        for rank, likely in enumerate(np.argsort(-digit.probabilities, kind="stable")[:3]):
            share, line = float(digit.probabilities[likely]), y + 0.17 + 0.33 * rank
            colour, weight = (PALE, "normal") if rank else (edge, "bold")
            axis.add_patch(Rectangle((x + 2.36, line - 0.12), 0.38 * share, 0.24, color=colour))
            axis.text(x + 2.3, line, str(likely), fontsize=11, weight=weight, va="center", ha="right")
            axis.text(x + 3.22, line, number(share, ".0%"), fontsize=9, va="center", ha="right", color="0.25")
    shown = f"The first {len(digits)} of {total:,} digits" if total > len(digits) else f"{total} digits"
    title = f"{'1 digit' if total == 1 else shown}: where it was found, what the network saw, the three likeliest"
    title += "" if all(digit.certain for digit in digits) else " (orange: doubtful)"
    axis.text(0.1, 0.16, title, fontsize=11, va="center", weight="bold")
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    return figure


def _short(name: str, length: int = 34) -> str:
    """Return a name that fits over its card; it keeps the end, which differs between files."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= length else f"…{name[1 - length :]}"


def annotated(picture: NDArray[np.uint8], digits: Sequence[tuple[tuple[int, int, int, int], str, bool]]) -> bytes:
    """Return a JPEG copy of a picture with a box around each digit, and above it what was read.

    Args:
        picture: Grey ``(h, w)``, RGB ``(h, w, 3)`` or RGBA ``(h, w, 4)``.
        digits: Box (left, top, right, bottom), text, and whether the digit is certain: blue, or else orange.
    """
    image = Image.fromarray(picture)
    scale = min(-(-COPY_LEAST // max(image.size)), COPY_MOST / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), reducing_gap=2)
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    draw, pen = ImageDraw.Draw(paper), max(2, max(paper.size) // 500)
    for box, text, certain in digits:
        left, top, right, bottom = (round(side * scale) for side in box)
        colour = CORRECT if certain else WRONG
        draw.rectangle((left - pen, top - pen, right + pen, bottom + pen), outline=colour, width=pen)
        height = min(max(14, (bottom - top) // 3), max(paper.size) // 20)
        where = (left, max(top - 2 * pen, height))
        draw.text(
            where, text, colour, ImageFont.load_default(height), "ls", stroke_width=pen // 2 + 1, stroke_fill="white"
        )
    file = io.BytesIO()
    paper.save(file, "JPEG", quality=88)
    return file.getvalue()
