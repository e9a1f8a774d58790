"""Figures: pure functions from arrays to a matplotlib ``Figure``, without any state of pyplot's."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from mnist_lightning.evaluation.metrics import (
    BINS,
    calibration_error,
    decide,
    frequent_mistakes,
    reliability,
)
from mnist_lightning.evaluation.report import number
from mnist_lightning.files import write_atomic

# Two of Okabe and Ito's colours, told apart with any colour vision; the line styles tell them apart without colour.
STYLES = {"train": {"color": "#0072B2", "linestyle": "--"}, "val": {"color": "#D55E00", "linestyle": "-"}}
NAMES = {"train": "training", "val": "validation"}
RIGHT, WRONG = "#0072B2", "#D55E00"  # theirs too
FRAME = (0xD5, 0x5E, 0x00)
# From white through the colour of what is wrong to its shade: the darker the more, with any colour vision.
ERRORS = LinearSegmentedColormap.from_list("errors", ["white", WRONG, "#7A3600"]).with_extremes(bad="0.94")
ZERO = "·"  # so that the eye finds what is not zero
NOT_FINITE = "The probabilities are not finite:\nthe network diverged"
GALLERY_COLUMNS, TILE_WIDTH, TILE_HEIGHT = 10, 36, 50


def curves(history: Sequence[Mapping[str, str]]) -> Figure:
    """Draw accuracy and loss of training and validation over the epochs.

    Training figures are means over the epoch, with dropout; validation is measured after it, without. So the
    validation curve may well lie above the training curve.

    Args:
        history: Rows of ``metrics.csv``, at least one; those with any of ``train/acc``, ``train/loss``, ``val/acc``
            (fractions) and ``val/loss`` (nats) are drawn.
    """
    # Validation may run in the middle of an epoch, so a point's place follows from its update.
    first = next((row for row in history if row.get("train/loss")), history[0])
    updates_per_epoch = (int(first["step"]) + 1) / (int(first["epoch"]) + 1)
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric, label in zip(axes, ("acc", "loss"), ("Accuracy", "Loss (cross-entropy, nats)"), strict=True):
        for stage, style in STYLES.items():
            rows = [row for row in history if row.get(f"{stage}/{metric}")]
            if rows:
                epochs = [(int(row["step"]) + 1) / updates_per_epoch for row in rows]
                values = [float(row[f"{stage}/{metric}"]) for row in rows]
                marker = "o" if len(rows) < 30 else None
                axis.plot(epochs, values, label=NAMES[stage], marker=marker, markersize=4, **style)
        axis.set_xlabel("Epochs trained")
        axis.set_title(label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    axes[0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_atomic(path, png(figure))


def test_figures(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, str]],
) -> dict[str, Figure]:
    """Draw the report of a test: every figure under the name of its file, in the report's order.

    Args:
        images: ``(N, 28, 28)``, white on black.
        labels: True digits ``(N,)`` in 0-9, at least one.
        probabilities: ``(N, 10)`` in [0, 1], those of a diverged network not finite.
        metrics: What ``metrics.classification`` says of them.
        history: Rows of the run's ``metrics.csv``; without any there is no ``curves``.
    """
    confusion = np.array(metrics["confusion_matrix"])
    drawn = {
        "per_digit": per_digit(metrics),
        "confusion_counts": confusion_counts(confusion),
        "confusion_percent": confusion_percent(confusion),
        "confused_pairs": confused_pairs(confusion),
        "misclassified": misclassified(images, labels, probabilities),
        "samples": samples(images, labels, probabilities),
        "confidence_histogram": confidence_histogram(labels, probabilities),
        "reliability_diagram": reliability_diagram(labels, probabilities),
        "roc": roc(labels, probabilities),
        "precision_recall": precision_recall(labels, probabilities),
    }
    return drawn | ({"curves": curves(history)} if history else {})


def confusion_counts(confusion: NDArray[np.integer]) -> Figure:
    """Draw the confusion matrix as counts.

    Args:
        confusion: Counts ``(10, 10)``, rows true, columns predicted.
    """
    return _matrix("Confusion matrix: number of images", confusion, "{:,.0f}")


def confusion_percent(confusion: NDArray[np.integer]) -> Figure:
    """Draw the confusion matrix as percentages of each true digit's images; a digit without any has a blank row.

    Args:
        confusion: Counts ``(10, 10)``, rows true, columns predicted.
    """
    images = confusion.sum(axis=1, keepdims=True)
    percent = np.divide(100 * confusion, images, out=np.full(confusion.shape, np.nan), where=images > 0)
    return _matrix("Confusion matrix: % of each true digit", percent, "{:.1f}")


def _matrix(title: str, values: NDArray[Any], style: str) -> Figure:
    # The diagonal would outshine the errors by a factor of hundreds, so colour is for the errors alone.
    errors = np.where(np.eye(len(values), dtype=bool), np.nan, values)
    largest = float(np.nanmax(errors, initial=0))
    figure, axis = _figure(5.2, 5.2)
    _table(axis, errors, largest, [[_cell(value, style) for value in row] for row in values])
    for digit, text in enumerate(axis.texts):
        if digit % (len(values) + 1) == 0:
            text.set_fontweight("bold")
    axis.set_title(title)
    axis.set_xlabel(f"predicted (the darkest error is {style.format(largest)})" if largest else "predicted")
    axis.set_ylabel("true")
    return figure


def _cell(value: float, style: str) -> str:
    if np.isnan(value):
        return ""
    return style.format(value) if value else ZERO


def _table(axis: Axes, values: NDArray[Any], darkest: float, texts: Sequence[Sequence[str]]) -> None:
    """Draw a table of texts on shades of the errors' colour, from white for 0; a value that is no number is grey."""
    shades = ERRORS(np.ma.masked_invalid(values / (darkest or 1)))  # (rows, columns, 4)
    luminance = shades[..., :3] @ [0.2126, 0.7152, 0.0722]  # the weights of ITU-R BT.709
    axis.pcolormesh(shades, edgecolors="0.85", linewidth=0.5)
    for row, column in np.ndindex(values.shape):
        text = texts[row][column]
        colour = "white" if luminance[row, column] < 0.5 else "0.6" if text == ZERO else "black"
        cell = axis.text(column + 0.5, row + 0.5, text, color=colour, ha="center", va="center")
        cell.set_in_layout(False)  # it lies within its cell; measuring a hundred of them takes time
    axis.set_xticks(np.arange(values.shape[1]) + 0.5, [str(column) for column in range(values.shape[1])])
    axis.set_yticks(np.arange(values.shape[0]) + 0.5, [str(row) for row in range(values.shape[0])])
    axis.tick_params(length=0)
    axis.invert_yaxis()


def per_digit(metrics: Mapping[str, Any]) -> Figure:
    """Draw the table of each digit's accuracy, precision, F1, AUROC and number of images.

    Args:
        metrics: What ``classification`` returns.
    """
    names = ("per_digit", "precision_per_digit", "f1_per_digit", "auroc_per_digit")
    shares = np.array([metrics[name] for name in names], dtype=float).T  # (10, 4); None becomes NaN
    support = np.sum(metrics["confusion_matrix"], axis=1)
    texts = [
        [*(number(share, ".2%") for share in row[:3]), number(row[3]), f"{images:,}"]
        for row, images in zip(shares, support, strict=True)
    ]
    figure, axis = _figure(5.2, 4.6)
    shortfall = np.column_stack([1 - shares, np.full(len(shares), np.nan)])
    _table(axis, shortfall, 2 * float(np.nanmax(shortfall)), texts)  # twice, so that the darkest stays light
    axis.set_xticks(axis.get_xticks(), ["accuracy\n= recall", "precision", "F1", "AUROC", "images"])
    axis.xaxis.tick_top()
    axis.set_ylabel("true digit")
    axis.set_title("Per digit (the darker, the further from perfect)")
    return figure


def confused_pairs(confusion: NDArray[np.integer], top: int = 10) -> Figure:
    """Draw the most frequent confusions as bars.

    Args:
        confusion: Counts ``(10, 10)``, rows true, columns predicted.
        top: How many at most.
    """
    mistakes = frequent_mistakes(confusion, top)
    figure, axis = _figure(5.2, 3.8)
    axis.set_title("Most frequent mistakes")
    if not mistakes:
        _note(axis, "No mistake")
        return figure
    counts = [count for _, _, count, _ in mistakes]
    bars = axis.barh([f"{true} taken for {predicted}" for true, predicted, _, _ in mistakes], counts, color=WRONG)
    axis.bar_label(bars, [f"{count:,} ({share:.1%} of all {true}s)" for true, _, count, share in mistakes], padding=3)
    axis.set_xlim(0, 1.7 * max(counts))  # room for the labels
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_visible(False)  # the labels say the numbers
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def misclassified(
    images: NDArray[np.uint8], labels: NDArray[np.integer], probabilities: NDArray[np.floating], top: int = 40
) -> Figure:
    """Draw the digits that were misclassified, the most confident mistakes first.

    Args:
        images: ``(N, 28, 28)``, white on black.
        labels: True digits ``(N,)``.
        probabilities: ``(N, 10)``; a confidence that is no number comes last.
        top: How many at most.
    """
    predicted, confidence = decide(probabilities)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:top]
    title = f"Misclassified: {len(shown)} of {len(wrong):,}, the most confident first"
    if not len(shown):
        title = f"No mistake: all {len(labels):,} images were recognised"
    return _gallery(title, images, labels, predicted, confidence, shown)


def samples(
    images: NDArray[np.uint8], labels: NDArray[np.integer], probabilities: NDArray[np.floating], top: int = 40
) -> Figure:
    """Draw the first images with what was predicted; the wrong ones have a frame, a cross and a bold caption.

    Args:
        images: ``(N, 28, 28)``, white on black.
        labels: True digits ``(N,)``.
        probabilities: ``(N, 10)``.
        top: How many at most.
    """
    predicted, confidence = decide(probabilities)
    shown = np.arange(len(labels))[:top]
    right = np.count_nonzero(predicted[shown] == labels[shown])
    title = f"The first {len(shown)} of {len(labels):,} images: {right} right, {len(shown) - right} wrong"
    return _gallery(title, images, labels, predicted, confidence, shown)


def _gallery(
    title: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.float64],
    shown: NDArray[np.int64],
) -> Figure:
    """Draw the chosen images as one picture: forty axes would take a second."""
    rows = max(1, -(-len(shown) // GALLERY_COLUMNS))
    top = 20  # all in pixels of the digits, each of which becomes 3x3 pixels of the PNG
    height, width = top + rows * TILE_HEIGHT, GALLERY_COLUMNS * TILE_WIDTH
    canvas = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(3 * width / 120, 3 * height / 120))
    axis = figure.add_axes((0, 0, 1, 1))
    for place, index in enumerate(shown):
        row, column = divmod(place, GALLERY_COLUMNS)
        y, x = top + row * TILE_HEIGHT, column * TILE_WIDTH + (TILE_WIDTH - 28) // 2
        wrong = predicted[index] != labels[index]
        if wrong:
            canvas[y - 1 : y + 29, x - 1 : x + 29] = FRAME
        canvas[y : y + 28, x : x + 28] = images[index][:, :, None]
        caption = f"{labels[index]} → {predicted[index]} {'✗' if wrong else '✓'}"
        weight = "bold" if wrong else "normal"
        axis.text(x + 14, y + 31, caption, ha="center", va="top", weight=weight)
        axis.text(x + 14, y + 38, number(confidence[index], ".1%"), ha="center", va="top", fontsize=9, color="0.3")
    axis.imshow(canvas, interpolation="nearest", aspect="auto")
    axis.text(4, 3, title, va="top", fontsize=12)
    if len(shown):
        axis.text(4, 11, "true → predicted, and the confidence", va="top", color="0.3")
    axis.set_axis_off()
    return figure


def confidence_histogram(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> Figure:
    """Draw how many right and wrong predictions there are by confidence, on a logarithmic scale.

    Args:
        labels: True digits ``(N,)``.
        probabilities: ``(N, 10)``; a confidence that is not finite is left out.
    """
    predicted, confidence = decide(probabilities)
    finite = np.isfinite(confidence)
    figure, axis = _figure(5.2, 5.6)
    edges = np.linspace(0, 1, 41)
    looks: dict[str, dict[str, Any]] = {
        "right": {"facecolor": RIGHT, "alpha": 0.35},
        "wrong": {"facecolor": "none", "edgecolor": WRONG, "hatch": "////", "linewidth": 1.5},
    }
    top = 1
    for name, look in looks.items():
        chosen = confidence[finite & ((predicted == labels) == (name == "right"))]
        counts = np.histogram(chosen, edges)[0]
        top = max(top, counts.max())
        axis.stairs(counts, edges, fill=True, label=f"{name} ({len(chosen):,})", **look)
    axis.set(xlim=(0, 1), ylim=(0.7, 10 * top))  # before the scale, which finds no limits where there is nothing
    axis.set_yscale("log")
    axis.set_title("Confidence of right and wrong predictions")
    axis.set_xlabel("confidence" + ("" if finite.all() else f" ({np.sum(~finite):,} that are not finite left out)"))
    axis.set_ylabel("images (log scale)")
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.legend(loc="upper left")
    return figure


def reliability_diagram(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> Figure:
    """Draw accuracy against confidence in bins of equal width, the gap between them, and the bins' sizes.

    Args:
        labels: True digits ``(N,)``.
        probabilities: ``(N, 10)``; if any is not finite there is nothing to draw.
    """
    predicted, confidence = decide(probabilities)
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    if not np.isfinite(probabilities).all():
        axis = figure.subplots()
        axis.set_title("Reliability")
        _note(axis, NOT_FINITE)
        return figure
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    counts, accuracy, mean = reliability(confidence, predicted == labels)
    edges = np.linspace(0, 1, BINS + 1)
    filled = counts > 0
    centres, width = (edges[:-1] + edges[1:])[filled] / 2, 0.9 / BINS
    upper.bar(centres, accuracy[filled], width, color=RIGHT, alpha=0.6, label="accuracy")
    upper.bar(
        centres,
        (mean - accuracy)[filled],
        width,
        bottom=accuracy[filled],
        facecolor="none",
        edgecolor=WRONG,
        hatch="////",
        label="gap to the mean confidence",
    )
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfectly calibrated")
    upper.set_title(f"Reliability: calibration error (ECE) {calibration_error(counts, accuracy, mean):.2%}")
    upper.set_ylabel("accuracy")
    upper.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    upper.legend(loc="upper left")
    bars = lower.bar(centres, counts[filled], width, color="0.7")
    lower.bar_label(bars, [f"{count:,}" for count in counts[filled]], fontsize=8, padding=1)
    lower.set_yscale("log")
    lower.set_ylim(0.7, 8 * max(counts))  # room for the labels
    lower.set_ylabel("images (log)")
    lower.set_xlabel("confidence")
    lower.set_xlim(0, 1.02)  # room for the last label
    lower.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    figure.align_ylabels()
    return figure


def roc(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> Figure:
    """Draw each digit's ROC curve against the rest, the false positive rate on a logarithmic scale.

    Args:
        labels: True digits ``(N,)``.
        probabilities: ``(N, 10)``; if any is not finite there is nothing to draw.
    """
    from sklearn.metrics import auc, roc_curve  # here, since the curves of fit are drawn without it

    figure, panels = _panels("ROC of each digit against the rest", labels, probabilities)
    # On a logarithmic axis nothing is at 0; what is, is drawn at the left edge, below one image in all.
    left = min(0.1, 10 ** np.floor(np.log10(1 / len(labels))))
    lowest = 1.0
    for digit, axis in panels.items():
        false_positives, true_positives, _ = roc_curve(labels == digit, probabilities[:, digit])
        lowest = min(lowest, np.interp(10 * left, false_positives, true_positives))
        axis.plot(np.maximum(false_positives, left), true_positives, color=RIGHT)
        axis.set_title(f"{digit}: AUROC {auc(false_positives, true_positives):.4f}")
    for axis in list(panels.values())[:1]:  # the others share its scales
        limits, ticks = _zoom(lowest)
        axis.set(xscale="log", xlim=(left, 1), xticks=10 ** np.arange(np.log10(left), 0, 2), ylim=limits, yticks=ticks)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    figure.supxlabel("false positive rate (log scale up to 1)")
    figure.supylabel("true positive rate (recall)")
    return figure


def precision_recall(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> Figure:
    """Draw each digit's precision over its recall, as close to the corner at 100% as all curves allow.

    Args:
        labels: True digits ``(N,)``.
        probabilities: ``(N, 10)``; if any is not finite there is nothing to draw.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, panels = _panels("Precision and recall of each digit", labels, probabilities)
    lowest = 1.0
    for digit, axis in panels.items():
        precision, recall, _ = precision_recall_curve(labels == digit, probabilities[:, digit], drop_intermediate=True)
        area = average_precision_score(labels == digit, probabilities[:, digit])
        lowest = min(lowest, area)
        axis.plot(recall, precision, color=RIGHT, drawstyle="steps-post")
        axis.set_title(f"{digit}: AP {area:.4f}")
    for axis in list(panels.values())[:1]:  # the others share its scales
        limits, ticks = _zoom(lowest)
        axis.set(xlim=limits, ylim=limits, xticks=ticks, yticks=ticks)
        axis.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    figure.supxlabel("recall")
    figure.supylabel("precision")
    return figure


def _zoom(lowest: float) -> tuple[tuple[float, float], list[float]]:
    """Return limits and ticks of an axis of shares: from 0, or as near to 1 as leaves the lowest in the upper half."""
    start = max(start for start in (0.0, 0.5, 0.8, 0.9) if not start or lowest >= (1 + start) / 2)
    return (start, 1 + 0.03 * (1 - start)), [start, (1 + start) / 2, 1]


def _panels(
    title: str, labels: NDArray[np.integer], probabilities: NDArray[np.floating]
) -> tuple[Figure, dict[int, Axes]]:
    """Return a figure with a panel per digit, and the panels of those that a curve can be drawn for."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle(title)
    finite = np.isfinite(probabilities).all()
    panels = {}
    for digit, axis in enumerate(figure.subplots(2, 5, sharex=True, sharey=True).flat):
        if finite and 0 < np.mean(labels == digit) < 1:
            axis.grid(alpha=0.3)
            panels[digit] = axis
        else:
            axis.set_title(f"{digit}")
            _note(axis, "no curve:\n" + ("absent, or\nthe only digit" if finite else "probabilities\nnot finite"))
    return figure, panels


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _note(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", color="0.3", transform=axis.transAxes)
    axis.set_axis_off()
