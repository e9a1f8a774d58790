"""Figures of a run: functions from arrays to a ``Figure``, without pyplot's global state."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from mnist_lightning.files import write_atomic
from mnist_lightning.report.blocks import Gallery
from mnist_lightning.report.metrics import Counts
from mnist_lightning.report.text import DIGIT_NAMES, class_word

CORRECT, WRONG = "#0072B2", "#D55E00"  # from Okabe and Ito's palette, safe with any colour vision
STAGES = {
    "train": {"label": "training", "color": CORRECT, "linestyle": "--"},
    "val": {"label": "validation", "color": WRONG, "linestyle": "-"},
}
SHADES = LinearSegmentedColormap.from_list("errors", ["white", WRONG, "#7A3600"])
ERRORS = SHADES.with_extremes(bad="0.94")
ZERO = "·"  # cells that are not zero stand out
DPI = 120
TILE_HEIGHT, TITLE_HEIGHT, GALLERY_WIDTH = 55, 20, 360  # of a gallery; pixels of the digits


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    return image.getvalue()


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG, transparent and without its heading: the page has both."""
    image = io.BytesIO()
    figure.suptitle("")
    figure.savefig(image, format="svg", transparent=True)
    return image.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_atomic(path, png(figure))


def single(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of this size in inches, and its only axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def note(axis: Axes, text: str) -> None:
    """Write a text in the middle of axes that have nothing to draw."""
    axis.text(0.5, 0.5, text, ha="center", va="center", color="0.3", transform=axis.transAxes)
    axis.set_axis_off()


def curves(history: Sequence[Mapping[str, str]]) -> Figure:
    """Draw accuracy and loss of training and validation over the epochs.

    Training values are means over the epoch, with dropout; validation runs after it, without
    dropout. So the validation curve may lie above the training curve.

    Args:
        history: Rows of ``metrics.csv``, at least one. The columns ``train/acc``, ``val/acc``
            (fractions), ``train/loss`` and ``val/loss`` (nats) are drawn where they have values.
    """
    # Validation may run in the middle of an epoch, so the update gives a point's place.
    first = next((row for row in history if row.get("train/loss")), history[0])
    epochs = int(first["epoch"] or 0) + 1  # LearningRateMonitor names no epoch
    updates_per_epoch = (int(first["step"]) + 1) / epochs
    figure = Figure(figsize=(10.6, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title("Accuracy")
    right.set_title("Loss (cross-entropy, nats)")
    for axis, metric in ((left, "acc"), (right, "loss")):
        for stage, style in STAGES.items():
            rows = [row for row in history if row.get(f"{stage}/{metric}")]
            places = [(int(row["step"]) + 1) / updates_per_epoch for row in rows]
            values = [float(row[f"{stage}/{metric}"]) for row in rows]
            if rows:
                marker = "o" if len(rows) < 30 else None
                axis.plot(places, values, marker=marker, markersize=4, **style)
        axis.set_xlabel("Epochs trained")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    left.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    return figure


def confusion_counts(confusion: Counts, names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the confusion matrix ``(10, 10)`` as counts: rows true, columns predicted."""
    return _matrix("Confusion matrix: number of images", confusion, "{:,.0f}", names)


def confusion_percent(confusion: Counts, names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the confusion matrix ``(10, 10)`` as percentages of each true digit.

    The row of an absent digit is blank.
    """
    images = confusion.sum(axis=1, keepdims=True)
    blank = np.full(confusion.shape, np.nan)
    percent = np.divide(100 * confusion, images, out=blank, where=images > 0)
    return _matrix(
        f"Confusion matrix: % of each true {class_word(names)}", percent, "{:.1f}", names
    )


def _matrix(title: str, values: NDArray[Any], style: str, names: Sequence[str]) -> Figure:
    """Draw a table of ten by ten values, the errors coloured: 0 is white, NaN is grey."""
    # The diagonal is hundreds of times larger than the errors, so only the errors have colour.
    errors = np.where(np.eye(len(values), dtype=bool), np.nan, values)
    largest = float(np.nanmax(errors, initial=0))
    shades = ERRORS(np.ma.masked_invalid(errors / (largest or 1)))  # (10, 10, 4)
    luminance = shades[..., :3] @ [0.2126, 0.7152, 0.0722]  # the weights of ITU-R BT.709
    are_short = max(map(len, names)) <= 3
    figure, axis = single(5.2, 5.2)
    axis.pcolormesh(shades, edgecolors="0.85", linewidth=0.5)
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        text, colour = style.format(value), "black"
        if np.isnan(value):
            text = ""
        elif not value:
            text, colour = ZERO, "0.6"
        elif luminance[row, column] < 0.5:
            colour = "white"
        look: dict[str, Any] = {"color": colour, "size": 10 if are_short else 8}
        look["weight"] = "bold" if row == column else "normal"
        cell = axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", **look)
        cell.set_in_layout(False)  # measuring a hundred texts is slow, and each lies in its cell
    places = np.arange(len(names)) + 0.5
    axis.set_yticks(places, names)
    axis.set_xticks(places, names)
    if not are_short:
        axis.set_xticklabels(names, rotation=45, ha="right", rotation_mode="anchor")
    axis.tick_params(length=0)
    axis.invert_yaxis()
    figure.suptitle(title)
    axis.set(ylabel="true", xlabel="predicted")
    return figure


def gallery(cards: Gallery) -> Figure:
    """Draw cards with their texts as one picture, since forty axes would take a second.

    Args:
        cards: Images ``(28, 28)``, the true and the predicted class, and the confidence.
    """
    columns = 10 if max((len(card.label) for card in cards.cards), default=0) <= 10 else 5
    tile = GALLERY_WIDTH // columns  # two long names need room
    rows = max(1, math.ceil(len(cards.cards) / columns))
    height = TITLE_HEIGHT + rows * TILE_HEIGHT
    canvas = np.full((height, GALLERY_WIDTH, 3), 255, np.uint8)
    # A pixel of a digit becomes 3x3 of the PNG.
    figure = Figure(figsize=(3 * GALLERY_WIDTH / DPI, 3 * height / DPI))
    axis = figure.add_axes((0, 0, 1, 1))
    centred: dict[str, Any] = {"ha": "center", "va": "top"}
    for place, card in enumerate(cards.cards):
        row, column = divmod(place, columns)
        y, x = TITLE_HEIGHT + row * TILE_HEIGHT, column * tile + (tile - 28) // 2
        if card.flagged:
            canvas[y - 1 : y + 29, x - 1 : x + 29] = tuple(bytes.fromhex(WRONG[1:]))
        canvas[y : y + 28, x : x + 28] = card.image[:, :, None]
        weight = "bold" if card.flagged else "normal"
        axis.text(x + 14, y + 31, card.label, weight=weight, **centred)
        axis.text(x + 14, y + 37, card.line, fontsize=9, color="0.3", **centred)
    axis.imshow(canvas, interpolation="nearest", aspect="auto")
    axis.text(4, 3, cards.title, va="top", fontsize=12)
    if cards:
        axis.text(4, 11, "true → predicted, the confidence, and the row", va="top", color="0.3")
    axis.set_axis_off()
    return figure
