"""Numbers and warnings as text; it imports nothing that takes a while."""

import math
from collections.abc import Sequence

DIGIT_NAMES = tuple("0123456789")


def mean_std(mean: float | None, std: float | None = None) -> str:
    """Return an accuracy in [0, 1] in percent, with its standard deviation if that is known.

    >>> mean_std(0.9769, 0.0008)
    '97.69 ± 0.08%'
    """
    if mean is None:
        return "-"
    if std is None:
        return f"{mean:.2%}"
    return f"{100 * mean:.2f} ± {100 * std:.2f}%"


def or_na(value: float | None, style: str = ".4f") -> str:
    """Return a formatted value, or ``n/a`` for None and for values that are not finite."""
    return "n/a" if value is None or not math.isfinite(value) else format(value, style)


def counted(number: int, noun: str) -> str:
    """Return a number of things in words.

    >>> counted(1, "image"), counted(1437, "image")
    ('1 image', '1,437 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def class_word(class_names: Sequence[str]) -> str:
    """Return what the classes are called: ``digit`` or ``class``."""
    return "digit" if tuple(class_names) == DIGIT_NAMES else "class"


def seen_text(seen: int | None, images: int) -> str:
    """Return what it means that validation images were learnt from; empty if none was.

    Args:
        seen: How many; None if it is not known.
        images: The number of validation images.
    """
    if seen is None:
        return (
            "It is not known which images the weights or the teacher have learnt from: "
            "the accuracy may be too high."
        )
    if not seen:
        return ""
    return (
        f"The weights or the teacher may have learnt from {seen:,} of the {images:,} validation "
        "images: the validation accuracy is too high."
    )
