"""Describe a data set: exact counts and pixel statistics, as numbers, JSON and figures."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mnist_lightning.files import write_atomic
from mnist_lightning.report import figures, figures_data
from mnist_lightning.report.metrics import Images, Labels

VERSIONS = 8  # of each augmented digit


def describe(images: Images, labels: Labels | None) -> dict[str, Any]:
    """Return the number of examples and the statistics of their pixels.

    Args:
        images: ``(N, 28, 28)``, at least one.
        labels: Their digits ``(N,)``, or None if they are unknown.

    Returns:
        ``num_examples``; ``num_per_digit``, a list of ten or None; ``pixel_mean`` and ``pixel_std`` (population) as
        fractions of white in [0, 1]; ``pixel_min`` and ``pixel_max`` in 0-255; and ``always_zero``, the share of pixel
        positions that are 0 in every image.
    """
    # In chunks: np.bincount makes 64-bit integers of all pixels at once.
    chunks = np.array_split(images, 1 + len(images) // 500)
    counts = np.sum([np.bincount(chunk.ravel(), minlength=256) for chunk in chunks], axis=0).tolist()
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
) -> dict[str, dict[str, Any]]:
    """Describe each split, and write ``description.json``, ``digit_counts.png``, ``samples.png``, ``mean_digits.png``.

    With an augmentation, also write ``augmented.png``, where people see whether a 6 or a 9 keeps its meaning.

    Args:
        folder: The folder to write to; it is made if it is missing.
        splits: Images and labels for each split's name; the samples and mean digits are those of ``training``, which
            has labels.
        augment: From images ``(N, 28, 28)`` to a random version of each.

    Returns:
        The result of ``describe`` for each split's name, which is also the content of ``description.json``.

    Raises:
        OSError: If the folder cannot be written to.
    """
    images, labels = splits["training"]
    assert labels is not None
    descriptions = {name: describe(*split) for name, split in splits.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "description.json", json.dumps(descriptions, indent=2) + "\n")
    figures.save(figures_data.digit_counts(descriptions), folder / "digit_counts.png")
    figures.save(figures_data.sample_grid(images, labels), folder / "samples.png")
    figures.save(figures_data.mean_digits(images, labels), folder / "mean_digits.png")
    if augment is None:
        (folder / "augmented.png").unlink(missing_ok=True)  # of an earlier description
    else:
        originals = _examples(images, labels)
        augmented = augment(originals.repeat(VERSIONS, axis=0)).reshape(len(originals), VERSIONS, 28, 28)
        figures.save(figures_data.augmented_grid(originals, augmented), folder / "augmented.png")
    return descriptions


def _examples(images: Images, labels: Labels) -> Images:
    """Return the first image of each of five digits, if possible of those that are most easily taken for another."""
    digits, first = np.unique(labels, return_index=True)
    order = np.argsort(~np.isin(digits, (1, 4, 6, 7, 9)), kind="stable")
    return images[first[order[:5]]]
