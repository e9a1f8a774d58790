"""Pictures of digits that are painted for tests: what is where is known."""

import io

import cv2
import numpy as np
from PIL import Image

FONT = cv2.FONT_HERSHEY_SIMPLEX
FAITHFUL = {"WEBP": {"lossless": True, "exact": True}, "JPEG": {"quality": 97, "subsampling": 0}}


def drawn(
    digit: int | str = 3,
    side: int = 200,
    at: tuple[int, int] | None = None,
    size: float = 4,
    pen: int = 14,
) -> np.ndarray:
    """A black sign on a white square page, in the middle, or with its bottom left corner ``at``."""
    page = np.full((side, side), 255, np.uint8)
    (width, height), _ = cv2.getTextSize(str(digit), FONT, size, pen)
    at = at or ((side - width) // 2, (side + height) // 2)
    cv2.putText(page, str(digit), at, FONT, size, 0, pen, cv2.LINE_AA)
    return page


def written(lines: list[str], step: int = 130) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """A page of digits in lines, and their boxes in reading order; a blank leaves out a digit."""
    page = np.full((step * len(lines) + 60, step * max(map(len, lines)) + 60), 255, np.uint8)
    boxes = []
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            alone = np.full_like(page, 255)
            at = 40 + step * column, 130 + step * row + 9 * (column % 3)  # handwriting is not level
            cv2.putText(alone, character, at, FONT, 3, 0, 10, cv2.LINE_AA)
            if alone.min() < 128:
                boxes.append(bounds(alone))
            page = np.minimum(page, alone)
    return page, boxes


def row(digits: str) -> np.ndarray:
    """A small page with one line."""
    page = np.full((90, 70 * len(digits) + 20), 250, np.uint8)
    for place, digit in enumerate(digits):
        cv2.putText(page, digit, (20 + 70 * place, 70), FONT, 2, 20, 6, cv2.LINE_AA)
    return page


def enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    """One of scikit-learn's digits, in black on white."""
    return 255 - (image * 15.9).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)


def bounds(page: np.ndarray) -> tuple[int, ...]:
    """The box of what is black."""
    rows, columns = np.nonzero(page < 128)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def overlap(box: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Intersection over union of two boxes."""
    both = [max(0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1)]
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (box, other)]
    return both[0] * both[1] / (sum(areas) - both[0] * both[1])


def content(picture: Image.Image | np.ndarray, kind: str = "PNG", **settings: object) -> bytes:
    """A picture file."""
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    file = io.BytesIO()
    picture.save(file, kind, **(FAITHFUL.get(kind, {}) | settings))
    return file.getvalue()
