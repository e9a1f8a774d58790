"""Figures of a data set: sample images, mean images and digit counts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from mnist_lightning.report.figures import CORRECT, WRONG, single
from mnist_lightning.report.metrics import DIGITS, Images, Labels

PER_ROW = 12
GAP = 2  # pixels between images
LINE = 7  # pixels of a line of text between two rows
COLOURS = (CORRECT, WRONG, "#009E73")  # from Okabe and Ito's palette too


def sample_grid(images: Images, labels: Labels) -> Figure:
    """Draw the first 12 images of each digit, one row per digit."""
    figure, axis = single(8, 7)
    _draw(axis, [images[np.flatnonzero(labels == digit)[:PER_ROW]] for digit in DIGITS], PER_ROW, largest=255)
    axis.set(title=f"The first {PER_ROW} images of each digit", ylabel="Digit")
    axis.set_yticks([row * (28 + GAP) + 13.5 for row in DIGITS], map(str, DIGITS))
    return figure


def augmented_grid(originals: Images, augmented: NDArray[np.uint8]) -> Figure:
    """Draw digits and beside each the versions that training sees.

    Args:
        originals: ``(N, 28, 28)``.
        augmented: ``(N, M, 28, 28)``.
    """
    columns = 1 + augmented.shape[1]
    rows = [[original, *versions] for original, versions in zip(originals, augmented, strict=True)]
    figure, axis = single(8, 0.9 * len(rows) + 0.25)
    _draw(axis, rows, columns, largest=255)
    axis.set_xticks([13.5, (28 + GAP) * (columns + 1) / 2 - 1.5], ["original", "augmented"])
    axis.xaxis.tick_top()
    axis.axvline(28 + GAP / 2 - 0.5, color=CORRECT, linewidth=2)
    return figure


def mean_digits(images: Images, labels: Labels) -> Figure:
    """Draw the mean image of each digit as fractions of white."""
    groups = [images[labels == digit] for digit in DIGITS]
    means = [_mean(group) for group in groups]
    figure, axis = single(8, 3.7)
    mappable = _draw(axis, [means[:5], means[5:]], 5, 1, LINE)
    for digit, group in enumerate(groups):
        row, column = divmod(digit, 5)
        x, y = column * (28 + GAP) + 13.5, row * (28 + GAP + LINE) - 1.5
        axis.text(x, y, f"{digit} ({len(group):,})", ha="center", va="bottom")
    figure.suptitle("Mean image of each digit, and the number of images", fontsize="large")
    figure.colorbar(mappable, label="Fraction of white", shrink=0.8)
    return figure


def digit_counts(splits: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw how often each digit occurs, in percent of each split's images.

    Args:
        splits: The result of ``describe`` for the name of each split, one to three with labels; those without labels
            are left out.
    """
    labelled = {name: split for name, split in splits.items() if split["num_per_digit"] is not None}
    figure, axis = single(8, 4)
    width = 0.8 / len(labelled)
    for place, (name, split) in enumerate(labelled.items()):
        shares = np.array(split["num_per_digit"]) / split["num_examples"]
        left, label = np.arange(10) - 0.4 + place * width, f"{name} ({split['num_examples']:,})"
        axis.bar(left, shares, width, align="edge", color=COLOURS[place], label=label)
    axis.set(title="Share of each digit", xlabel="Digit", ylabel="Share of the split's images", xticks=DIGITS)
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False)
    return figure


def _mean(images: Images) -> NDArray[np.float64]:
    """Return the mean image in [0, 1], or NaN if there are no images."""
    total = images.sum(axis=0, dtype=np.uint64)
    return total / (255 * len(images)) if len(images) else np.full(total.shape, np.nan)


def _draw(axis: Axes, rows: Sequence[Iterable[Any]], columns: int, largest: int, line: int = 0) -> AxesImage:
    """Draw rows of images as one picture, NaN between them: a hundred axes would take seconds."""
    width, height = 28 + GAP, 28 + GAP + line
    picture = np.full((len(rows) * height - GAP - line, columns * width - GAP), np.nan)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            picture[row * height : row * height + 28, column * width : column * width + 28] = image
    axis.set(xticks=[], yticks=[])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return axis.imshow(picture, cmap="gray", vmin=0, vmax=largest)
