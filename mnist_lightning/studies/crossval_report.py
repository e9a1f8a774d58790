"""What a cross-validation or a learning curve found: a text table, ``out_of_fold.csv`` and a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from mnist_lightning.files import open_atomic
from mnist_lightning.report import figures
from mnist_lightning.report.metrics import confusion, decide
from mnist_lightning.report.study import Gallery, Picture, Table, write_page
from mnist_lightning.report.text import spread, text_table
from mnist_lightning.studies.crossval import CrossValidation

Curve = Mapping[int, NDArray[np.float64]]  # the accuracies, in [0, 1], for each number of training images


def crossval_table(result: CrossValidation) -> str:
    """Return a line for each fold, and what they have in common."""
    right = np.mean(result.probabilities.argmax(axis=1) == result.labels)
    text = f"{text_table(_rows(result))}\n\nAccuracy of {result.accuracies.size} folds: {_spread(result.accuracies)}"
    return text if len(result.accuracies) == 1 else f"{text}\nAccuracy of the repeats' mean probabilities: {right:.2%}"


def _rows(result: CrossValidation) -> list[list[str]]:
    rows = [["repeat", "fold", "accuracy", "seconds"]]
    for (repeat, fold), accuracy in np.ndenumerate(result.accuracies):
        rows.append([str(repeat + 1), str(fold + 1), f"{accuracy:.2%}", f"{result.seconds[repeat, fold]:.1f}"])
    return rows


def _spread(accuracies: NDArray[np.float64]) -> str:
    return spread(float(accuracies.mean()), float(accuracies.std(ddof=1)))


def write_crossval(result: CrossValidation) -> None:
    """Write ``out_of_fold.csv``, a row for each image, and ``index.html`` into the folder of the runs."""
    names, (digits, confidences) = result.class_names, decide(result.probabilities)
    header = "index,label,digit,times_wrong," + ",".join(f"p{digit}" for digit in range(10))
    table = np.column_stack([np.arange(len(digits)), result.labels, digits, result.times_wrong, result.probabilities])
    with open_atomic(result.folder / "out_of_fold.csv") as file:
        np.savetxt(file, table, fmt=["%d"] * 4 + ["%.6f"] * 10, delimiter=",", header=header, comments="")
    counts, top, columns = confusion(result.labels, result.probabilities), result.suspects(), _rows(result)
    labels = [f"label {names[result.labels[row]]}" for row in top]
    lines = [f"predicted {names[digits[row]]}, {confidences[row]:.0%}; row {row}" for row in top]
    caption = "The label of an image, the answer of networks that were not trained on it, and its row, counted from 0."
    charts = [
        Picture(figures.svg(figures.confusion_counts(counts, names)), "Confusion matrix in images"),
        Picture(figures.svg(figures.confusion_percent(counts, names)), "Confusion matrix in percent"),
    ]
    sections: dict[str, list[Any]] = {
        "Perhaps a wrong label": [Gallery(result.images[top], labels, lines, caption)],
        "Confusion matrix": charts,
        "Folds": [Table(columns[0], columns[1:])],
    }
    headline = {
        "Accuracy of a fold": _spread(result.accuracies),
        "Folds": f"{result.accuracies.size}",
        "Images": f"{len(result.labels):,}",
        "Seconds of training": f"{result.seconds.sum():,.0f}",
    }
    lead = "Each training image was predicted by a network that was not trained on it; its best epoch was chosen there."
    write_page(result.folder, f"Cross-validation · {result.folder.name}", lead, headline, sections)


def curve_table(curve: Curve) -> str:
    """Return a line for each number of training images."""
    return text_table(_curve_rows(curve))


def _curve_rows(curve: Curve) -> list[list[str]]:
    rows = [[f"{size:,}", _spread(accuracies), str(len(accuracies))] for size, accuracies in curve.items()]
    return [["images", "accuracy", "folds"], *rows]


def write_curve(folder: Path, curve: Curve) -> None:
    """Write ``index.html`` of a learning curve."""
    columns, *rows = _curve_rows(curve)
    picture = Picture(figures.svg(draw_curves({"": curve})), "Accuracy over the number of training images")
    lead = "Accuracy by number of training images, mean ± standard deviation over folds."
    headline = {"Training images": rows[-1][0], "Accuracy": rows[-1][1]}
    write_page(folder, f"Learning curve · {folder.name}", lead, headline, {"Curve": [picture, Table(columns, rows)]})


def draw_curves(curves: Mapping[str, Curve]) -> Figure:
    """Draw learning curves under their names: the mean over folds, and bars of the standard deviation."""
    figure, axis = figures.single(6, 4)
    sizes = sorted({size for curve in curves.values() for size in curve})
    for (name, curve), color in zip(curves.items(), (figures.CORRECT, figures.WRONG), strict=False):
        means, stds = zip(*((accuracies.mean(), accuracies.std(ddof=1)) for accuracies in curve.values()), strict=True)
        axis.errorbar([*curve], means, stds, marker="o", markersize=4, capsize=3, label=name, color=color)
    axis.set(xscale="log", xlabel="Training images", ylabel="Accuracy")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.grid(alpha=0.3)
    if len(curves) > 1:
        axis.legend()
    return figure
