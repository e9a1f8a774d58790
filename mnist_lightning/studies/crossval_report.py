"""What a cross-validation or a learning curve found: a table, ``out_of_fold.csv`` and a page."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from mnist_lightning.files import open_atomic
from mnist_lightning.report import figures
from mnist_lightning.report.blocks import Block, Card, Gallery, Picture, Table
from mnist_lightning.report.metrics import confusion, decide
from mnist_lightning.report.pages import write_page
from mnist_lightning.report.text import mean_std
from mnist_lightning.studies.crossval import CrossValidation

# The accuracies of all folds, in [0, 1], for each number of training images.
Curve = Mapping[int, NDArray[np.float64]]


def crossval_table(result: CrossValidation) -> str:
    """Return a line for each fold, and what they have in common."""
    number = result.accuracies.size
    lines = [f"{_folds(result)}\n", f"Accuracy of {number} folds: {_spread(result.accuracies)}"]
    if len(result.accuracies) > 1:
        right = np.mean(result.probabilities.argmax(axis=1) == result.labels)
        lines.append(f"Accuracy of the repeats' mean probabilities: {right:.2%}")
    return "\n".join(lines)


def _folds(result: CrossValidation) -> Table:
    rows = []
    for (repeat, fold), accuracy in np.ndenumerate(result.accuracies):
        seconds = f"{result.seconds[repeat, fold]:.1f}"
        rows.append([str(repeat + 1), str(fold + 1), f"{accuracy:.2%}", seconds])
    return Table(["repeat", "fold", "accuracy", "seconds"], rows)


def _spread(accuracies: NDArray[np.float64]) -> str:
    return mean_std(float(accuracies.mean()), float(accuracies.std(ddof=1)))


def write_crossval(result: CrossValidation) -> None:
    """Write ``out_of_fold.csv``, a row for each image, and ``index.html`` beside the runs."""
    _write_out_of_fold(result)
    names = result.class_names
    counts = confusion(result.labels, result.probabilities)
    in_images = figures.svg(figures.confusion_counts(counts, names))
    in_percent = figures.svg(figures.confusion_percent(counts, names))
    sections: dict[str, list[Block]] = {
        "Perhaps a wrong label": [_suspects(result)],
        "Confusion matrix": [
            Picture(in_images, "Confusion matrix in images"),
            Picture(in_percent, "Confusion matrix in percent"),
        ],
        "Folds": [_folds(result)],
    }
    headline = {
        "Accuracy of a fold": _spread(result.accuracies),
        "Folds": str(result.accuracies.size),
        "Images": f"{len(result.labels):,}",
        "Seconds of training": f"{result.seconds.sum():,.0f}",
    }
    lead = (
        "Each training image was predicted by a network that was not trained on it; "
        "its best epoch was chosen there."
    )
    title = f"Cross-validation · {result.folder.name}"
    write_page(result.folder, title, lead, headline, sections)


def _write_out_of_fold(result: CrossValidation) -> None:
    digits, _ = decide(result.probabilities)
    rows = np.arange(len(digits))
    table = np.column_stack([rows, result.labels, digits, result.times_wrong, result.probabilities])
    columns = ["index", "label", "digit", "times_wrong", *(f"p{digit}" for digit in range(10))]
    header, formats = ",".join(columns), ["%d"] * 4 + ["%.6f"] * 10
    with open_atomic(result.folder / "out_of_fold.csv") as file:
        np.savetxt(file, table, fmt=formats, delimiter=",", header=header, comments="")


def _suspects(result: CrossValidation) -> Gallery:
    names, (digits, confidences) = result.class_names, decide(result.probabilities)
    cards = []
    for row in result.suspects():
        line = f"predicted {names[digits[row]]}, {confidences[row]:.0%}; row {row}"
        cards.append(Card(result.images[row], f"label {names[result.labels[row]]}", line))
    caption = (
        "The label of an image, the answer of networks that were not trained on it, "
        "and its row, counted from 0."
    )
    return Gallery(cards, caption)


def curve_table(curve: Curve) -> Table:
    """Return a row for each number of training images."""
    rows = []
    for size, accuracies in curve.items():
        rows.append([f"{size:,}", _spread(accuracies), str(len(accuracies))])
    return Table(["images", "accuracy", "folds"], rows)


def write_curve(folder: Path, curve: Curve) -> None:
    """Write ``index.html`` of a learning curve."""
    table = curve_table(curve)
    last = table.rows[-1]
    drawing = figures.svg(draw_curves({"": curve}))
    picture = Picture(drawing, "Accuracy over the number of training images")
    lead = "Accuracy by number of training images, mean ± standard deviation over folds."
    headline = {"Training images": last[0], "Accuracy": last[1]}
    title = f"Learning curve · {folder.name}"
    write_page(folder, title, lead, headline, {"Curve": [picture, table]})


def draw_curves(curves: Mapping[str, Curve]) -> Figure:
    """Draw learning curves under their names: mean over folds, bars of the standard deviation."""
    figure, axis = figures.single(6, 4)
    sizes = sorted({size for curve in curves.values() for size in curve})
    for (name, curve), color in zip(curves.items(), (figures.CORRECT, figures.WRONG), strict=False):
        means = [accuracies.mean() for accuracies in curve.values()]
        stds = [accuracies.std(ddof=1) for accuracies in curve.values()]
        axis.errorbar(
            [*curve], means, stds, marker="o", markersize=4, capsize=3, label=name, color=color
        )
    axis.set(xscale="log", xlabel="Training images", ylabel="Accuracy")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.grid(alpha=0.3)
    if len(curves) > 1:
        axis.legend()
    return figure
