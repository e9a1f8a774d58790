"""Lines of the paper: remove ruled and squared lines, underlines and boxes from marks."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.pictures.ink import Pixels
from mnist_lightning.pictures.marks import Mark, connected

SHORT = 12  # pixels of the shortest line


def without_lines(mark: Mark, page: tuple[int, int], least: float) -> list[Mark]:
    """Take the lines and frames out of a mark: what goes on straight over most of its width, and is thin.

    Where a stroke crosses a line, the ink is thicker than the line and stays.

    Args:
        mark: What is no digit as it is.
        page: Height and width.
        least: The shortest line.
    """
    mask = mark.mask
    # A line across the page may be crooked, or broken.
    height_share, width_share = (
        0.25 if own > 0.9 * whole else 0.5 for own, whole in zip(mask.shape, page, strict=True)
    )
    height, width = mask.shape
    turned = np.ascontiguousarray(mask.T)
    level, upright = _lines(mask, round(0.75 * width)), _lines(turned, round(0.75 * height))
    sides = level[: height // 5], level[-height // 5 :], upright[: width // 5], upright[-width // 5 :]
    if min(height, width) > SHORT and mask.mean() < 0.5 and all(side.any() for side in sides):  # a frame
        least = SHORT
    lines = _lines(mask, round(max(least, width_share * width)))
    if width > height > least / 2:  # a digit on an underline, which may be as short as the digit
        lines[-height // 4 :] |= level[-height // 4 :]
    rows = np.flatnonzero(lines.any(axis=1))
    # A frame or a grid has upright lines too; those of a digit on a line are its strokes.
    if height_share < 0.5 or (len(rows) and np.ptp(rows) > 0.6 * height):
        lines |= _lines(turned, round(max(least, height_share * height))).T
    if not lines.any():
        return [mark]
    rest = mask & (1 - lines)
    near = cv2.dilate(lines, np.ones((5, 5), np.uint8))
    marks = connected(mark.ink, rest, mark.left, mark.top, 3)
    kept = []
    for part in marks:
        y, x = part.top - mark.top, part.left - mark.left
        own = part.ink > 0
        if (near[y : y + own.shape[0], x : x + own.shape[1]] & own).sum() < 0.5 * own.sum():
            kept.append(part)
    return kept


def _lines(mask: Pixels, length: int) -> Pixels:
    """Return the pixels of level lines of at least this length, where the ink is no thicker than a line."""
    # A line that is not quite level goes on in the rows above or below.
    wide = cv2.dilate(mask, np.ones((3 if mask.shape[1] < 100 else 5, 1), np.uint8))
    along = _opened(wide, (1, length)) & mask
    if not along.any():
        return along
    thickness = along.sum() / (along[0].sum() + (along[1:] > along[:-1]).sum())
    return np.asarray(along & (1 - _opened(mask, (round(thickness) + 3, 1))))


def _opened(mask: Pixels, kernel: tuple[int, int]) -> Pixels:
    """Return the ink that a rectangle of this height and width fits into; beyond the edges there is none."""
    ones = np.ones(kernel, np.uint8)
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, ones, borderType=cv2.BORDER_CONSTANT, borderValue=0))


def is_long(mark: Mark, page: tuple[int, int]) -> bool:
    """Return whether a mark is a bar, or goes from one edge of the page to the other."""
    (height, width), (page_height, page_width) = mark.ink.shape, page
    return bool(width > 2.5 * height or width > 0.9 * page_width or height > 0.9 * page_height)


def thicker_than_lines(marks: Sequence[Mark]) -> list[Mark]:
    """Return the marks of a page with lines without what is left of the lines, which are thinner than the pen."""
    pens = np.array([cv2.distanceTransform(np.pad(mark.ink, 1), cv2.DIST_C, 3).max() for mark in marks])
    slim = np.array([mark.ink.shape[1] / mark.ink.shape[0] for mark in marks])
    pen = pens[(slim > 0.3) & _are_digits(marks)].max(initial=0)
    kept = pens > pen * np.select([slim < 0.1, slim < 0.3], [0.6, 0.4], 0.3)
    return [mark for mark, keep in zip(marks, kept, strict=True) if keep]


def frames(marks: Sequence[Mark]) -> NDArray[np.bool_]:
    """Return which marks have a digit within them."""
    boxes = np.array([(mark.left, mark.top, mark.right, mark.bottom) for mark in marks]).reshape(-1, 4)
    within = (boxes[:, :2] > boxes[:, None, :2]).all(axis=2) & (boxes[:, 2:] < boxes[:, None, 2:]).all(axis=2)
    width = boxes[:, 2] - boxes[:, 0]
    return np.asarray((within & _are_digits(marks) & (width > 0.1 * width[:, None])).any(axis=1))


def _are_digits(marks: Sequence[Mark]) -> NDArray[np.bool_]:
    return np.array([mark.likeness >= 0.5 for mark in marks], bool)
