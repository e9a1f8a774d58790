"""Describe a data set: exact counts and pixel statistics, as numbers, JSON and figures."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from mnist_lightning.files import write_atomic
from mnist_lightning.report.figures import CORRECT, WRONG, save, single
from mnist_lightning.report.metrics import DIGITS, Images, Labels
from mnist_lightning.report.text import DIGIT_NAMES, class_word

VERSIONS = 8  # of each augmented digit
LOOKALIKES = (1, 4, 6, 7, 9)  # the digits that are most easily taken for another
PER_ROW = 12
GAP = 2  # pixels between images
LINE = 7  # pixels of a line of text between two rows
COLOURS = (CORRECT, WRONG, "#009E73")  # from Okabe and Ito's palette too


def describe(images: Images, labels: Labels | None) -> dict[str, Any]:
    """Return the number of examples and the statistics of their pixels.

    Args:
        images: ``(N, 28, 28)``, at least one.
        labels: Their digits ``(N,)``, or None if they are unknown.

    Returns:
        ``num_examples``; ``num_per_digit``, a list of ten or None; ``pixel_mean`` and ``pixel_std``
        (population) as fractions of white in [0, 1]; ``pixel_min`` and ``pixel_max`` in 0-255; and
        ``always_zero``, the share of pixel positions that are 0 in every image.
    """
    # In chunks: np.bincount makes 64-bit integers of all pixels at once.
    chunks = np.array_split(images, 1 + len(images) // 500)
    counted = [np.bincount(chunk.ravel(), minlength=256) for chunk in chunks]
    counts = np.sum(counted, axis=0).tolist()
    # Python's integers neither overflow nor round.
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value**2 * count for value, count in enumerate(counts))
    return {
        "num_examples": len(images),
        "num_per_digit": None if labels is None else np.bincount(labels, minlength=10).tolist(),
        "pixel_mean": total / (255 * images.size),
        "pixel_std": math.sqrt((images.size * squares - total**2) / (255 * images.size) ** 2),
        "pixel_min": int(images.min()),
        "pixel_max": int(images.max()),
        "always_zero": float((images.max(axis=0) == 0).mean()),
    }


def write_description(
    folder: Path,
    splits: Mapping[str, tuple[Images, Labels | None]],
    augment: Callable[[Images], Images] | None = None,
    names: Sequence[str] = DIGIT_NAMES,
) -> dict[str, dict[str, Any]]:
    """Describe each split, and write ``description.json`` and figures.

    These are ``digit_counts.png``, ``samples.png`` and ``mean_digits.png``. With an augmentation
    there is ``augmented.png`` too, where people see whether a 6 or a 9 keeps its meaning.

    Args:
        folder: The folder to write to; it is made if it is missing.
        splits: Images and labels for each split's name; the samples and mean digits are those of
            ``training``, which has labels.
        augment: From images ``(N, 28, 28)`` to a random version of each.
        names: The names of the labels 0-9.

    Returns:
        The result of ``describe`` for each split's name, which is also the content of
        ``description.json``.

    Raises:
        OSError: If the folder cannot be written to.
    """
    images, labels = splits["training"]
    assert labels is not None
    descriptions = {name: describe(*split) for name, split in splits.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "description.json", json.dumps(descriptions, indent=2) + "\n")
    save(digit_counts(descriptions, names), folder / "digit_counts.png")
    save(sample_grid(images, labels, names), folder / "samples.png")
    save(mean_digits(images, labels, names), folder / "mean_digits.png")
    if augment is None:
        (folder / "augmented.png").unlink(missing_ok=True)  # of an earlier description
        return descriptions
    originals = _examples(images, labels)
    versions = augment(originals.repeat(VERSIONS, axis=0))
    augmented = versions.reshape(len(originals), VERSIONS, 28, 28)
    save(augmented_grid(originals, augmented), folder / "augmented.png")
    return descriptions


def _examples(images: Images, labels: Labels) -> Images:
    """Return the first image of each of five digits, if possible of the lookalikes."""
    digits, first = np.unique(labels, return_index=True)
    order = np.argsort(~np.isin(digits, LOOKALIKES), kind="stable")
    return images[first[order[:5]]]


def sample_grid(images: Images, labels: Labels, names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the first 12 images of each class, one row per class."""
    rows = [images[np.flatnonzero(labels == digit)[:PER_ROW]] for digit in DIGITS]
    word = class_word(names)
    figure, axis = single(8, 7)
    _draw(axis, rows, PER_ROW, largest=255)
    axis.set(title=f"The first {PER_ROW} images of each {word}", ylabel=word.capitalize())
    axis.set_yticks([row * (28 + GAP) + 13.5 for row in DIGITS], names)
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
    middle = (28 + GAP) * (columns + 1) / 2 - 1.5
    axis.set_xticks([13.5, middle], ["original", "augmented"])
    axis.xaxis.tick_top()
    axis.axvline(28 + GAP / 2 - 0.5, color=CORRECT, linewidth=2)
    return figure


def mean_digits(images: Images, labels: Labels, names: Sequence[str] = DIGIT_NAMES) -> Figure:
    """Draw the mean image of each class as fractions of white."""
    groups = [images[labels == digit] for digit in DIGITS]
    means = [_mean(group) for group in groups]
    figure, axis = single(8, 3.7)
    shades = _draw(axis, [means[:5], means[5:]], 5, 1, LINE)
    for digit, group in enumerate(groups):
        row, column = divmod(digit, 5)
        x = column * (28 + GAP) + 13.5
        y = row * (28 + GAP + LINE) - 1.5
        axis.text(x, y, f"{names[digit]} ({len(group):,})", ha="center", va="bottom")
    title = f"Mean image of each {class_word(names)}, and the number of images"
    figure.suptitle(title, fontsize="large")
    figure.colorbar(shades, label="Fraction of white", shrink=0.8)
    return figure


def _mean(images: Images) -> NDArray[np.float64]:
    """Return the mean image in [0, 1], or NaN if there are no images."""
    total = images.sum(axis=0, dtype=np.uint64)
    return total / (255 * len(images)) if len(images) else np.full(total.shape, np.nan)


def digit_counts(
    splits: Mapping[str, Mapping[str, Any]], names: Sequence[str] = DIGIT_NAMES
) -> Figure:
    """Draw how often each class occurs, in percent of each split's images.

    Args:
        splits: The result of ``describe`` for the name of each split, one to three with labels;
            those without labels are left out.
        names: The names of the classes.
    """
    labelled = {name: split for name, split in splits.items() if split["num_per_digit"] is not None}
    word = class_word(names)
    figure, axis = single(8, 4)
    width = 0.8 / len(labelled)
    for place, (name, split) in enumerate(labelled.items()):
        shares = np.array(split["num_per_digit"]) / split["num_examples"]
        left = np.arange(10) - 0.4 + place * width
        label = f"{name} ({split['num_examples']:,})"
        axis.bar(left, shares, width, align="edge", color=COLOURS[place], label=label)
    axis.set(title=f"Share of each {word}", xlabel=word.capitalize())
    axis.set_ylabel("Share of the split's images")
    axis.set_xticks(DIGITS, names, rotation=0 if word == "digit" else 20)
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False)
    return figure


def _draw(
    axis: Axes, rows: Sequence[Iterable[Any]], columns: int, largest: int, line: int = 0
) -> AxesImage:
    """Draw rows of images as one picture, NaN between them: a hundred axes would take seconds."""
    width, height = 28 + GAP, 28 + GAP + line
    picture = np.full((len(rows) * height - GAP - line, columns * width - GAP), np.nan)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            y, x = row * height, column * width
            picture[y : y + 28, x : x + 28] = image
    axis.set(xticks=[], yticks=[])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return axis.imshow(picture, cmap="gray", vmin=0, vmax=largest)
