"""Figures of a run: pure functions from arrays to a matplotlib ``Figure``, without pyplot's global state."""

import io
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
from mnist_lightning.report.metrics import Counts, Labels, Probabilities, Test, decide, frequent_mistakes
from mnist_lightning.report.text import DIGIT_NAMES, noun, number

CORRECT, WRONG = "#0072B2", "#D55E00"  # from Okabe and Ito's palette, safe with any colour vision
STAGES = {
    "train": {"label": "training", "color": CORRECT, "linestyle": "--"},
    "val": {"label": "validation", "color": WRONG, "linestyle": "-"},
}
ERRORS = LinearSegmentedColormap.from_list("errors", ["white", WRONG, "#7A3600"]).with_extremes(bad="0.94")
ZERO = "·"  # cells that are not zero stand out
TILE_HEIGHT, TITLE_HEIGHT, GALLERY_WIDTH = 50, 20, 360  # of a gallery; pixels of the digits


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
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

    Training values are means over the epoch, with dropout; validation runs after it, without dropout. So the
    validation curve may lie above the training curve.

    Args:
        history: Rows of ``metrics.csv``, at least one. The columns ``train/acc``, ``val/acc`` (fractions),
            ``train/loss`` and ``val/loss`` (nats) are drawn where they have values.
    """
    # Validation may run in the middle of an epoch, so the update gives a point's place.
    first = next((row for row in history if row.get("train/loss")), history[0])
    updates_per_epoch = (int(first["step"]) + 1) / (int(first["epoch"] or 0) + 1)  # LearningRateMonitor names none
    figure = Figure(figsize=(5.2, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    for axis, metric, title in ((upper, "acc", "Accuracy"), (lower, "loss", "Loss (cross-entropy, nats)")):
        for stage, style in STAGES.items():
            rows = [row for row in history if row.get(f"{stage}/{metric}")]
            if rows:
                epochs = [(int(row["step"]) + 1) / updates_per_epoch for row in rows]
                values = [float(row[f"{stage}/{metric}"]) for row in rows]
                axis.plot(epochs, values, marker="o" if len(rows) < 30 else None, markersize=4, **style)
        axis.set(title=title, xlabel="Epochs trained")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    upper.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    return figure


def confusion_counts(confusion: Counts, names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the confusion matrix ``(10, 10)`` as counts: rows true, columns predicted."""
    return _matrix("Confusion matrix: number of images", confusion, "{:,.0f}", names)


def confusion_percent(confusion: Counts, names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the confusion matrix ``(10, 10)`` as percentages of each true digit; the row of an absent digit is blank."""
    images = confusion.sum(axis=1, keepdims=True)
    percent = np.divide(100 * confusion, images, out=np.full(confusion.shape, np.nan), where=images > 0)
    return _matrix(f"Confusion matrix: % of each true {noun(names)}", percent, "{:.1f}", names)


def _matrix(title: str, values: NDArray[Any], style: str, names: Sequence[str]) -> Figure:
    # The diagonal is hundreds of times larger than the errors, so only the errors have colour.
    errors = np.where(np.eye(len(values), dtype=bool), np.nan, values)
    largest = float(np.nanmax(errors, initial=0))
    figure, axis = single(5.2, 5.2)
    cells = [["" if np.isnan(value) else style.format(value) if value else ZERO for value in row] for row in values]
    _table(axis, errors, largest, cells, names, names)
    for text in axis.texts[:: len(values) + 1]:
        text.set_fontweight("bold")
    figure.suptitle(title)
    axis.set_ylabel("true")
    axis.set_xlabel(f"predicted (the strongest colour is {style.format(largest)})" if largest else "predicted")
    return figure


def _table(axis: Axes, values: NDArray[Any], darkest: float, texts: Any, rows: Any, columns: Any) -> None:
    """Draw a table of texts, each cell coloured by its value: 0 is white, NaN is grey."""
    shades = ERRORS(np.ma.masked_invalid(values / (darkest or 1)))  # (rows, columns, 4)
    luminance = shades[..., :3] @ [0.2126, 0.7152, 0.0722]  # the weights of ITU-R BT.709
    size = 10 if max(map(len, rows)) <= 3 else 8
    axis.pcolormesh(shades, edgecolors="0.85", linewidth=0.5)
    for row, column in np.ndindex(values.shape):
        text = texts[row][column]
        colour = "white" if luminance[row, column] < 0.5 else "0.6" if text == ZERO else "black"
        cell = axis.text(column + 0.5, row + 0.5, text, color=colour, size=size, ha="center", va="center")
        cell.set_in_layout(False)  # measuring a hundred texts is slow, and each lies within its cell
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns)
    if size == 8 and columns == rows:
        axis.set_xticklabels(columns, rotation=45, ha="right", rotation_mode="anchor")
    axis.tick_params(length=0)
    axis.invert_yaxis()


def per_digit(metrics: Mapping[str, Any], names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw a table of each digit's accuracy, precision, F1, AUROC and number of images.

    Args:
        metrics: The result of ``metrics.classification``.
        names: The names of the classes.
    """
    shown = ("per_digit", "precision_per_digit", "f1_per_digit", "auroc_per_digit")
    shares = np.array([metrics[name] for name in shown], dtype=float).T  # (10, 4); None becomes NaN
    support = np.sum(metrics["confusion_matrix"], axis=1)
    texts = [
        [*(number(share, ".2%") for share in row[:3]), number(row[3]), f"{images:,}"]
        for row, images in zip(shares, support, strict=True)
    ]
    figure, axis = single(5.2, 4.6)
    shortfall = np.column_stack([1 - shares, np.full(len(shares), np.nan)])
    heads = ["accuracy\n= recall", "precision", "F1", "AUROC", "images"]
    _table(axis, shortfall, 2 * float(np.nanmax(shortfall)), texts, names, heads)  # twice: the darkest stays light
    axis.xaxis.tick_top()
    axis.set(title=f"Metrics per {noun(names)} (darker is further from perfect)", ylabel=f"true {noun(names)}")
    return figure


def confused_pairs(confusion: Counts, top: int = 10, names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the most frequent mistakes as bars.

    Args:
        confusion: Counts ``(10, 10)``, rows true, columns predicted.
        top: Draw at most this many.
        names: The names of the classes.
    """
    mistakes = frequent_mistakes(confusion, top)
    figure, axis = single(5.2, 3.8)
    axis.set_title(f"Most frequent mistakes, and their share of the true {noun(names)}")
    if not mistakes:
        note(axis, "No mistakes")
        return figure
    counts = [count for _, _, count, _ in mistakes]
    pairs = [f"true {names[true]}, predicted {names[predicted]}" for true, predicted, _, _ in mistakes]
    bars = axis.barh(pairs, counts, color=WRONG)
    axis.bar_label(bars, [f"{count:,} ({share:.1%})" for _, _, count, share in mistakes], padding=3)
    axis.set_xlim(0, 1.7 * max(counts))  # room for the labels
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_visible(False)  # the labels give the numbers
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def choose_misclassified(labels: Labels, probabilities: Probabilities, top: int = 40) -> tuple[str, NDArray[np.int64]]:
    """Return a title, and the rows of the misclassified images, at most ``top``: the most confident first, NaN last."""
    predicted, confidence = decide(probabilities)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:top]
    if not len(shown):
        return f"No mistakes: all {len(labels):,} predictions are correct", shown
    return f"Misclassified: {len(shown)} of {len(wrong):,}, the most confident first", shown


def choose_samples(labels: Labels, probabilities: Probabilities, top: int = 40) -> tuple[str, NDArray[np.int64]]:
    """Return a title, and the rows of the first ``top`` images."""
    shown = np.arange(len(labels))[:top]
    correct = np.count_nonzero(decide(probabilities)[0][shown] == labels[shown])
    return f"The first {len(shown)} of {len(labels):,} images: {correct} correct, {len(shown) - correct} wrong", shown


def gallery(title: str, shown: Labels, test: Test, names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw chosen images and their predictions; wrong ones have a frame, a cross and a bold caption.

    Args:
        title: The title.
        shown: The rows of the images to draw, as one picture: forty axes would take a second.
        test: All images, labels and probabilities.
        names: The names of the classes.
    """
    images, labels, probabilities = test
    predicted, confidence = decide(probabilities)
    columns = 10 if max(map(len, names)) <= 3 else 5  # two long names need room
    tile = GALLERY_WIDTH // columns
    rows = max(1, -(-len(shown) // columns))
    height = TITLE_HEIGHT + rows * TILE_HEIGHT
    canvas = np.full((height, GALLERY_WIDTH, 3), 255, np.uint8)
    figure = Figure(figsize=(3 * GALLERY_WIDTH / 120, 3 * height / 120))  # a pixel of a digit becomes 3x3 of the PNG
    axis = figure.add_axes((0, 0, 1, 1))
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        y, x = TITLE_HEIGHT + row * TILE_HEIGHT, column * tile + (tile - 28) // 2
        mark, weight = "✓", "normal"
        if predicted[index] != labels[index]:
            mark, weight = "✗", "bold"
            canvas[y - 1 : y + 29, x - 1 : x + 29] = tuple(bytes.fromhex(WRONG[1:]))
        canvas[y : y + 28, x : x + 28] = images[index][:, :, None]
        caption = f"{names[labels[index]]} → {names[predicted[index]]} {mark}"
        axis.text(x + 14, y + 31, caption, ha="center", va="top", weight=weight)
        axis.text(x + 14, y + 38, number(confidence[index], ".1%"), ha="center", va="top", fontsize=9, color="0.3")
    axis.imshow(canvas, interpolation="nearest", aspect="auto")
    axis.text(4, 3, title, va="top", fontsize=12)
    if len(shown):
        axis.text(4, 11, "true → predicted, and the confidence", va="top", color="0.3")
    axis.set_axis_off()
    return figure
