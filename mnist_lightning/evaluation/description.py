"""What a data set looks like in numbers: exact, since they come from counts."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 500  # images counted at a time: np.bincount makes 64-bit integers of what it counts, 3 MB of these


def describe(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> dict[str, Any]:
    """Return the number of examples and the statistics of their pixels.

    Args:
        images: At least one image, ``(N, 28, 28)``.
        labels: Their digits ``(N,)``; None if they are unknown.

    Returns:
        ``num_examples``; ``num_per_digit``, a list of ten or None; of all pixels ``pixel_mean`` and ``pixel_std``
        (population) as fractions of white, in [0, 1], and ``pixel_min`` and ``pixel_max`` in 0-255; and
        ``always_zero``, the share of the pixels of an image that are 0 in every image.
    """
    counts = np.zeros(256, np.int64)
    largest = np.zeros(images.shape[1:], np.uint8)
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        counts += np.bincount(chunk.ravel(), minlength=256)
        np.maximum(largest, chunk.max(axis=0), out=largest)
    # Python's integers: they neither overflow nor round.
    of_value = dict(enumerate(counts.tolist()))
    number = sum(of_value.values())
    total = sum(value * count for value, count in of_value.items())
    squares = sum(value**2 * count for value, count in of_value.items())
    occurring = np.flatnonzero(counts)
    return {
        "num_examples": len(images),
        "num_per_digit": None if labels is None else np.bincount(labels, minlength=10).tolist(),
        "pixel_mean": total / (255 * number),
        "pixel_std": math.sqrt((number * squares - total**2) / (255 * number) ** 2),
        "pixel_min": int(occurring[0]),
        "pixel_max": int(occurring[-1]),
        "always_zero": float((largest == 0).mean()),
    }


def description_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the descriptions side by side.

    Args:
        splits: What ``describe`` returned, under the name of each split; "-" stands for what is unknown.
    """
    rows = [["", *splits], ["images", *(f"{split['num_examples']:,}" for split in splits.values())]]
    rows += [[f"digit {digit}", *(_count(split, digit) for split in splits.values())] for digit in range(10)]
    for name, key, form in (
        ("pixel mean", "pixel_mean", ".4f"),
        ("pixel std", "pixel_std", ".4f"),
        ("pixel min", "pixel_min", "d"),
        ("pixel max", "pixel_max", "d"),
        ("always 0", "always_zero", ".1%"),
    ):
        rows.append([name, *(format(split[key], form) for split in splits.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        columns = [name.ljust(widths[0])]
        columns += [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("   ".join(columns))
    lines += [
        "",
        "Pixel mean and std are fractions of white, min and max of 0-255; always 0 is the share of an image's",
    ]
    lines += ["pixels that are black in every image."]
    return "\n".join(lines)


def _count(split: Mapping[str, Any], digit: int) -> str:
    if split["num_per_digit"] is None:
        return "-"
    count = split["num_per_digit"][digit]
    return f"{count:,}  {count / split['num_examples']:6.2%}"
