"""Figures of a data set: arrays in, a matplotlib ``Figure`` out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

PER_ROW = 12
GAP = 2  # pixels between images that are drawn side by side
LINE = 7  # pixels of a line of text between two rows
COLOURS = ("#0072B2", "#D55E00", "#009E73")  # three of Okabe and Ito's, told apart with any colour vision


def sample_grid(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> Figure:
    """Draw the first 12 images of each digit, a row per digit; without labels the first 120 images.

    Args:
        images: Images ``(N, 28, 28)``.
        labels: Their digits ``(N,)``; None if they are unknown.
    """
    if labels is None:
        rows = [images[start : start + PER_ROW] for start in range(0, 10 * PER_ROW, PER_ROW)]
        names = [str(PER_ROW * row + 1) for row in range(10)]
        title, label = f"The first {min(len(images), 10 * PER_ROW)} images, which have no labels", "Image number"
    else:
        rows = [images[np.flatnonzero(labels == digit)[:PER_ROW]] for digit in range(10)]
        names = [str(digit) for digit in range(10)]
        title, label = f"The first {PER_ROW} images of each digit", "Digit"
    figure = Figure(figsize=(8, 7), layout="constrained")
    axis = figure.subplots()
    _draw(axis, _side_by_side(rows, PER_ROW), largest=255)
    axis.set_title(title)
    axis.set_ylabel(label)
    axis.set_yticks([row * (28 + GAP) + 13.5 for row in range(10)], names)
    return figure


def mean_digits(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> Figure:
    """Draw the mean image of each digit, or without labels the mean of all, as fractions of white.

    Args:
        images: Images ``(N, 28, 28)``.
        labels: Their digits ``(N,)``; None if they are unknown.
    """
    if labels is None:
        rows, names, title = [[_mean(images)]], [""], f"The mean of {len(images):,} images"
    else:
        groups = [images[labels == digit] for digit in range(10)]
        means = [_mean(group) for group in groups]
        rows, title = [means[:5], means[5:]], "The mean image of each digit, and how many images there are"
        names = [f"{digit} ({len(group):,})" for digit, group in enumerate(groups)]
    figure = Figure(figsize=(4.8 if labels is None else 8, 3.7), layout="constrained")
    axis = figure.subplots()
    mappable = _draw(axis, _side_by_side(rows, len(rows[0]), LINE), largest=1)
    for place, name in enumerate(names):
        row, column = divmod(place, 5)
        axis.text(column * (28 + GAP) + 13.5, row * (28 + GAP + LINE) - 1.5, name, ha="center", va="bottom")
    figure.suptitle(title, fontsize="large")
    figure.colorbar(mappable, label="Fraction of white", shrink=0.8)
    return figure


def digit_counts(splits: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw how often each digit occurs in each split, in percent of the split's images.

    Args:
        splits: What ``describe`` returned, under the name of each split, up to three with labels; one without is left
            out.
    """
    labelled = {name: split for name, split in splits.items() if split["num_per_digit"] is not None}
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / max(len(labelled), 1)
    for place, ((name, split), colour) in enumerate(zip(labelled.items(), COLOURS, strict=False)):
        left = np.arange(10) - 0.4 + place * width
        shares = np.array(split["num_per_digit"]) / split["num_examples"]
        label = f"{name} ({split['num_examples']:,})"
        axis.bar(left, shares, width, align="edge", color=colour, label=label)
    axis.set_title("How often each digit occurs")
    axis.set_xlabel("Digit")
    axis.set_ylabel("Share of the split's images")
    axis.set_xticks(range(10))
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    if labelled:
        figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False)
    else:
        axis.text(0.5, 0.5, "no labels", transform=axis.transAxes, ha="center")
    return figure


def _mean(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean image in [0, 1]; not a number where there is none."""
    total = images.sum(axis=0, dtype=np.uint64)
    return total / (255 * len(images)) if len(images) else np.full(total.shape, np.nan)


def _side_by_side(rows: Sequence[Iterable[NDArray[Any]]], columns: int, line: int = 0) -> NDArray[np.float64]:
    """Return one picture of rows of images, since a hundred axes take seconds to draw; not a number in between."""
    width, height = 28 + GAP, 28 + GAP + line
    picture = np.full((len(rows) * height - GAP - line, columns * width - GAP), np.nan)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            picture[row * height : row * height + 28, column * width : column * width + 28] = image
    return picture


def _draw(axis: Axes, picture: NDArray[np.float64], largest: int) -> AxesImage:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return axis.imshow(picture, cmap="gray", vmin=0, vmax=largest)
