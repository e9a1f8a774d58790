"""Figures of the probabilities: confidence, calibration, ROC and precision-recall curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from mnist_lightning.report import metrics
from mnist_lightning.report.figures import CORRECT, WRONG, note, single
from mnist_lightning.report.metrics import Labels, Probabilities, decide, has_curves
from mnist_lightning.report.text import DIGIT_NAMES, noun

HATCHED: dict[str, Any] = {"facecolor": "none", "edgecolor": WRONG, "hatch": "////"}


def confidence_histogram(labels: Labels, probabilities: Probabilities) -> Figure:
    """Draw the number of correct and wrong predictions by confidence, on a logarithmic scale, without NaN."""
    predicted, confidence = decide(probabilities)
    finite = np.isfinite(confidence)
    figure, axis = single(5.2, 5.6)
    edges = np.linspace(0, 1, 41)
    top = 1
    for name, chosen, look in (
        ("correct", predicted == labels, {"facecolor": CORRECT, "alpha": 0.35}),
        ("wrong", predicted != labels, HATCHED | {"linewidth": 1.5}),
    ):
        counts, _ = np.histogram(confidence[finite & chosen], edges)
        top = max(top, counts.max())
        axis.stairs(counts, edges, fill=True, label=f"{name} ({counts.sum():,})", **look)
    axis.set(xlim=(0, 1), ylim=(0.7, 10 * top))  # before the scale, which cannot find limits where all counts are 0
    axis.set_yscale("log")
    figure.suptitle("Confidence of correct and wrong predictions")
    axis.set_ylabel("images (log scale)")
    axis.set_xlabel("confidence" + ("" if finite.all() else f" (without {np.sum(~finite):,} that are not finite)"))
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.legend(loc="upper left")
    return figure


def reliability_diagram(labels: Labels, probabilities: Probabilities) -> Figure:
    """Draw accuracy over confidence in bins of equal width, the gap between the two, and the size of each bin."""
    predicted, confidence = decide(probabilities)
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    if not np.isfinite(probabilities).all():
        figure.suptitle("Reliability diagram")
        note(figure.subplots(), "The probabilities are not finite:\nthe network diverged")
        return figure
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    counts, accuracy, mean = metrics.reliability(confidence, predicted == labels)
    ece = metrics.calibration_error(counts, accuracy, mean)
    filled = counts > 0
    centres, width = ((np.arange(metrics.BINS) + 0.5) / metrics.BINS)[filled], 0.9 / metrics.BINS
    counts, accuracy, mean = counts[filled], accuracy[filled], mean[filled]
    upper.bar(centres, accuracy, width, color=CORRECT, alpha=0.6, label="accuracy")
    upper.bar(centres, mean - accuracy, width, bottom=accuracy, label="gap to the mean confidence", **HATCHED)
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfectly calibrated")
    figure.suptitle(f"Reliability diagram: calibration error (ECE) {ece:.2%}")
    upper.set_ylabel("accuracy")
    upper.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    upper.legend(loc="upper left")
    bars = lower.bar(centres, counts, width, color="0.7")
    lower.bar_label(bars, [f"{count:,}" for count in counts], fontsize=8, padding=1)
    lower.set_yscale("log")
    limits = {"ylim": (0.7, 8 * max(counts)), "xlim": (0, 1.02)}  # room for the labels
    lower.set(ylabel="images (log)", xlabel="confidence", **limits)
    lower.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    figure.align_ylabels()
    return figure


def roc(labels: Labels, probabilities: Probabilities, class_names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the ROC curve of each digit against the rest, the false positive rate on a logarithmic scale."""
    from sklearn.metrics import auc, roc_curve  # slow to import, and fit draws its curves without it

    names = "false positive rate (log scale up to 1)", "true positive rate (recall)"
    figure, panels = _panels("ROC curve", *names, labels, probabilities, class_names)
    # A logarithmic axis has no 0: points at 0 are drawn at its left end, which is less than one image.
    left = min(0.1, 10 ** np.floor(np.log10(1 / len(labels))))
    lowest = 1.0
    for digit, axis in panels.items():
        false_positives, true_positives, _ = roc_curve(labels == digit, probabilities[:, digit])
        lowest = min(lowest, np.interp(10 * left, false_positives, true_positives))
        axis.plot(np.maximum(false_positives, left), true_positives, color=CORRECT)
        axis.set_title(f"{class_names[digit]}: AUROC {auc(false_positives, true_positives):.4f}", fontsize="medium")
    axis = figure.axes[0]  # all panels share its scales
    axis.set(xscale="log", xlim=(left, 1), xticks=10 ** np.arange(np.log10(left), 0, 2), **_zoom("y", lowest))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    return figure


def precision_recall(labels: Labels, probabilities: Probabilities, class_names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the precision of each digit over its recall, zoomed towards 100% as far as all curves allow."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, panels = _panels("Precision-recall curve", "recall", "precision", labels, probabilities, class_names)
    lowest = 1.0
    for digit, axis in panels.items():
        precision, recall, _ = precision_recall_curve(labels == digit, probabilities[:, digit], drop_intermediate=True)
        area = average_precision_score(labels == digit, probabilities[:, digit])
        lowest = min(lowest, area)
        axis.plot(recall, precision, color=CORRECT, drawstyle="steps-post")
        axis.set_title(f"{class_names[digit]}: AP {area:.4f}", fontsize="medium")
    axis = figure.axes[0]  # all panels share its scales
    axis.set(**_zoom("x", lowest), **_zoom("y", lowest))
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    return figure


def _zoom(name: str, lowest: float) -> dict[str, Any]:
    """Return limits and ticks of an axis of shares, zoomed so far that the lowest value is in the upper half."""
    start = max(start for start in (0.0, 0.5, 0.8, 0.9) if not start or lowest >= (1 + start) / 2)
    return {f"{name}lim": (start, 1 + 0.03 * (1 - start)), f"{name}ticks": [start, (1 + start) / 2, 1]}


def _panels(
    title: str, x: str, y: str, labels: Labels, probabilities: Probabilities, names: Sequence[str]
) -> tuple[Figure, dict[int, Axes]]:
    """Return a figure with a panel per digit, and the panels of the digits that have a curve."""
    figure = Figure(figsize=(5.2, 8), layout="constrained")
    figure.suptitle(f"{title} of each {noun(names)} against the rest")
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    axes = figure.subplots(5, 2, sharex=True, sharey=True).flat
    why = f"absent, or\nthe only {noun(names)}" if np.isfinite(probabilities).all() else "probabilities\nnot finite"
    panels = {}
    for digit, (axis, exists) in enumerate(zip(axes, has_curves(labels, probabilities), strict=True)):
        if exists:
            axis.grid(alpha=0.3)
            panels[digit] = axis
        else:
            axis.set_title(names[digit], fontsize="medium")
            note(axis, f"no curve:\n{why}")
    return figure, panels
