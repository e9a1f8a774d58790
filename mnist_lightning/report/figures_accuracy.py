"""Figures of how accurate a network is: by confidence, by threshold, on changed images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter
from numpy.typing import NDArray

from mnist_lightning.report import metrics
from mnist_lightning.report.figures import CORRECT, WRONG, note, single
from mnist_lightning.report.metrics import Labels, Probabilities, decide, has_curves
from mnist_lightning.report.text import DIGIT_NAMES, class_word

PANELS = {
    "shift": ("Shift", "pixels, mean of 8 directions"),
    "rotation": ("Rotation", "degrees, mean of both directions"),
    "noise": ("Noise", "standard deviation, as a share of white"),
    "blur": ("Blur", "standard deviation in pixels"),
    "stroke": ("Stroke width", "pixels thinner (negative) or thicker"),
}
# From the truth (N,) and the scores (N,) of a class: x, y, a low value of the curve, and its title.
Curve = Callable[[NDArray[np.bool_], Probabilities], tuple[Any, Any, float, str]]
HATCHED: dict[str, Any] = {"facecolor": "none", "edgecolor": WRONG, "hatch": "////"}


def confidence_histogram(labels: Labels, probabilities: Probabilities) -> Figure:
    """Draw the number of correct and wrong predictions by confidence, without NaN."""
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
    # Before the scale, which cannot find limits where all counts are 0.
    axis.set(xlim=(0, 1), ylim=(0.7, 10 * top))
    axis.set_yscale("log")
    figure.suptitle("Confidence of correct and wrong predictions")
    axis.set_ylabel("images (log scale)")
    missing = "" if finite.all() else f" (without {np.sum(~finite):,} that are not finite)"
    axis.set_xlabel(f"confidence{missing}")
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.legend(loc="upper left")
    return figure


def reliability_diagram(labels: Labels, probabilities: Probabilities) -> Figure:
    """Draw accuracy over confidence in bins, the gap between the two, and the size of each bin."""
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
    centres = ((np.arange(metrics.BINS) + 0.5) / metrics.BINS)[filled]
    counts, accuracy, mean = counts[filled], accuracy[filled], mean[filled]
    width = 0.9 / metrics.BINS
    upper.bar(centres, accuracy, width, color=CORRECT, alpha=0.6, label="accuracy")
    gap, name = mean - accuracy, "gap to the mean confidence"
    upper.bar(centres, gap, width, bottom=accuracy, label=name, **HATCHED)
    diagonal: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}
    upper.plot([0, 1], [0, 1], label="perfectly calibrated", **diagonal)
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


def roc(labels: Labels, probabilities: Probabilities, names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the ROC curve of each class against the rest, false positives on a logarithmic scale."""
    from sklearn.metrics import auc, roc_curve  # here, since it is slow to import

    # A logarithmic axis has no 0: points at 0 are at its left end, which is less than one image.
    left = min(0.1, 10 ** np.floor(np.log10(1 / len(labels))))

    def curve(truth: NDArray[np.bool_], scores: Probabilities) -> tuple[Any, Any, float, str]:
        false, true, _ = roc_curve(truth, scores)
        low = float(np.interp(10 * left, false, true))
        return np.maximum(false, left), true, low, f"AUROC {auc(false, true):.4f}"

    axes_names = "false positive rate, up to 1 (log scale)", "true positive rate (recall)"
    figure, lowest = _against_the_rest("ROC curve", axes_names, labels, probabilities, names, curve)
    axis = figure.axes[0]  # all panels share its scales
    ticks = 10 ** np.arange(np.log10(left), 0, 2)
    axis.set(xscale="log", xlim=(left, 1), xticks=ticks, **_zoom("y", lowest))
    axis.xaxis.set_minor_locator(NullLocator())
    return figure


def precision_recall(
    labels: Labels, probabilities: Probabilities, names: Sequence[str] = DIGIT_NAMES
) -> Figure:
    """Draw the precision of each class over its recall, zoomed in as far as all curves allow."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    def curve(truth: NDArray[np.bool_], scores: Probabilities) -> tuple[Any, Any, float, str]:
        precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
        area = float(average_precision_score(truth, scores))
        return recall, precision, area, f"AP {area:.4f}"

    title, axes_names = "Precision-recall curve", ("recall", "precision")
    figure, lowest = _against_the_rest(title, axes_names, labels, probabilities, names, curve)
    for line in (line for axis in figure.axes for line in axis.lines):
        line.set_drawstyle("steps-post")
    axis = figure.axes[0]  # all panels share its scales
    axis.set(**_zoom("x", lowest), **_zoom("y", lowest))
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    return figure


def _against_the_rest(
    title: str,
    axes_names: tuple[str, str],
    labels: Labels,
    probabilities: Probabilities,
    names: Sequence[str],
    curve: Curve,
) -> tuple[Figure, float]:
    """Return a figure with a panel for each class, and the lowest of the low values."""
    figure = Figure(figsize=(5.2, 8), layout="constrained")
    figure.suptitle(f"{title} of each {class_word(names)} against the rest")
    figure.supxlabel(axes_names[0], fontsize="medium")
    figure.supylabel(axes_names[1], fontsize="medium")
    axes = figure.subplots(5, 2, sharex=True, sharey=True).flat
    why = "probabilities\nnot finite"
    if np.isfinite(probabilities).all():
        why = f"absent, or\nthe only {class_word(names)}"
    lowest = 1.0
    exists = has_curves(labels, probabilities)
    for label, axis in enumerate(axes):
        heading = names[label]
        if exists[label]:
            x, y, low, area = curve(labels == label, probabilities[:, label])
            axis.plot(x, y, color=CORRECT)
            axis.grid(alpha=0.3)
            heading = f"{heading}: {area}"
            lowest = min(lowest, low)
        else:
            note(axis, f"no curve:\n{why}")
        axis.set_title(heading, fontsize="medium")
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    return figure, lowest


def _zoom(name: str, lowest: float) -> dict[str, Any]:
    """Return limits and ticks of an axis of shares: the lowest value is in its upper half."""
    starts = [start for start in (0.5, 0.8, 0.9) if lowest >= (1 + start) / 2]
    start = max(starts, default=0.0)
    limits = start, 1 + 0.03 * (1 - start)
    return {f"{name}lim": limits, f"{name}ticks": [start, (1 + start) / 2, 1]}


def robustness(accuracies: Mapping[str, Mapping[str, float]], unchanged: float) -> Figure:
    """Draw accuracy over the strength of each kind of change.

    Args:
        accuracies: The result of ``robustness.robustness``.
        unchanged: The accuracy on the unchanged images, drawn as a dashed line.
    """
    lowest = min(unchanged, *(min(points.values()) for points in accuracies.values()))
    starts = [start for start in (0.5, 0.8, 0.9) if lowest >= start + 0.15 * (1 - start)]
    start = max(starts, default=0.0)
    figure = Figure(figsize=(10.6, 5.6), layout="constrained")
    figure.suptitle(f"Accuracy in % on changed images (unchanged: {100 * unchanged:.1f})")
    axes = figure.subplots(2, 3, sharey=True).flat
    for axis, (kind, (title, unit)) in zip(axes, PANELS.items(), strict=False):
        points = {float(strength): accuracy for strength, accuracy in accuracies[kind].items()}
        places, line = zip(*sorted({**points, 0.0: unchanged}.items()), strict=True)
        axis.axhline(unchanged, color="black", linestyle="--", linewidth=1)
        axis.plot(places, line, color=CORRECT)
        axis.plot(list(points), list(points.values()), "o", color=CORRECT, markersize=5)
        for place, accuracy in points.items():
            # Below the point and towards 0: the line falls on the other side.
            look: dict[str, Any] = {"va": "top", "fontsize": 9, "textcoords": "offset points"}
            side = "right" if place > 0 else "left"
            axis.annotate(f"{100 * accuracy:.1f}", (place, accuracy), (0, -5), ha=side, **look)
        axis.set(title=title, xticks=list(points), ylim=(start, 1 + 0.05 * (1 - start)))
        axis.set_xlabel(unit, fontsize=9)
        axis.margins(x=0.12)
        axis.grid(alpha=0.3)
    figure.axes[-1].remove()  # five kinds in six places
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    return figure
