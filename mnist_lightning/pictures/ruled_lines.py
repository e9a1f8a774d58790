"""Lines of the paper: remove ruled and squared lines, underlines and boxes from marks."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.pictures.marks import Mark, connected
from mnist_lightning.pictures.read import Pixels

SHORTEST = 12  # pixels of a line


def without_lines(mark: Mark, page: tuple[int, int], least: float) -> list[Mark]:
    """Take the lines and frames out of a mark.

    A line goes on straight over most of its width, and is thin. Where a stroke crosses a line,
    the ink is thicker than the line and stays.

    Args:
        mark: What is no digit as it is.
        page: Height and width.
        least: The shortest line.
    """
    lines = _lines_in(mark, page, least)
    if not lines.any():
        return [mark]
    rest = connected(mark.ink, mark.mask & (1 - lines), mark.left, mark.top, least=3)
    near = cv2.dilate(lines, np.ones((5, 5), np.uint8))  # (h, w)
    kept = []
    for part in rest:
        y, x = part.top - mark.top, part.left - mark.left
        own = part.ink > 0
        beside = near[y : y + part.height, x : x + part.width] & own
        if beside.sum() < 0.5 * own.sum():  # otherwise it is a crumb of the line
            kept.append(part)
    return kept


def _lines_in(mark: Mark, page: tuple[int, int], least: float) -> Pixels:
    """Return the pixels of a mark that belong to lines ``(h, w)``, 0 or 1."""
    mask, turned = mark.mask, np.ascontiguousarray(mark.mask.T)  # (h, w), (w, h)
    height, width = mask.shape
    level = _level_lines(mask, round(0.75 * width))  # (h, w)
    upright = _level_lines(turned, round(0.75 * height))  # (w, h)
    if min(height, width) > SHORTEST and mask.mean() < 0.5 and _is_frame(level, upright):
        least = SHORTEST
    height_share, width_share = _share(height, page[0]), _share(width, page[1])
    lines = _level_lines(mask, round(max(least, width_share * width)))
    if width > height > least / 2:  # a digit on an underline, which may be as short as the digit
        lines[-height // 4 :] |= level[-height // 4 :]
    rows = np.flatnonzero(lines.any(axis=1))
    # A frame or a grid has upright lines too; those of a digit on a line are its strokes.
    if height_share < 0.5 or (len(rows) and np.ptp(rows) > 0.6 * height):
        lines |= _level_lines(turned, round(max(least, height_share * height))).T
    return lines


def _is_frame(level: Pixels, upright: Pixels) -> bool:
    """Return whether each side has a line, of those ``(h, w)`` and these ``(w, h)``."""
    height, width = level.shape
    top, bottom = level[: height // 5], level[-height // 5 :]
    left, right = upright[: width // 5], upright[-width // 5 :]
    return all(side.any() for side in (top, bottom, left, right))


def _share(own: int, whole: int) -> float:
    """Return the least length of a line as a share of a mark's: across a page, it may be broken."""
    return 0.25 if own > 0.9 * whole else 0.5


def _level_lines(mask: Pixels, length: int) -> Pixels:
    """Return the pixels of level lines of this length, where the ink is as thin as a line."""
    # A line that is not quite level goes on in the rows above or below.
    reach = 3 if mask.shape[1] < 100 else 5
    wide = cv2.dilate(mask, np.ones((reach, 1), np.uint8))
    along = _opened(wide, (1, length)) & mask
    if not along.any():
        return along
    upper_edges = along[0].sum() + (along[1:] > along[:-1]).sum()
    thickness = along.sum() / upper_edges
    return np.asarray(along & (1 - _opened(mask, (round(thickness) + 3, 1))))


def _opened(mask: Pixels, kernel: tuple[int, int]) -> Pixels:
    """Return the ink that a rectangle of this height and width fits into."""
    ones = np.ones(kernel, np.uint8)
    border = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, ones, **border))


def is_long(mark: Mark, page: tuple[int, int]) -> bool:
    """Return whether a mark is a bar, or goes from one edge of the page to the other."""
    page_height, page_width = page
    is_bar = mark.width > 2.5 * mark.height
    return is_bar or mark.width > 0.9 * page_width or mark.height > 0.9 * page_height


def thicker_than_lines(marks: Sequence[Mark]) -> list[Mark]:
    """Return the marks without what is left of lines, which are thinner than the pen."""
    pens = np.array([_thickness(mark) for mark in marks])
    slim = np.array([mark.width / mark.height for mark in marks])
    pen = pens[(slim > 0.3) & _are_digits(marks)].max(initial=0)
    kept = pens > pen * np.select([slim < 0.1, slim < 0.3], [0.6, 0.4], 0.3)
    return [mark for mark, keep in zip(marks, kept, strict=True) if keep]


def _thickness(mark: Mark) -> float:
    """Return half the width of a mark's thickest stroke."""
    return float(cv2.distanceTransform(np.pad(mark.ink, 1), cv2.DIST_C, 3).max())


def frames(marks: Sequence[Mark]) -> NDArray[np.bool_]:
    """Return which marks ``(N,)`` have a digit within them."""
    sides = [(mark.left, mark.top, mark.right, mark.bottom) for mark in marks]
    boxes = np.array(sides).reshape(-1, 4)
    starts, ends = boxes[:, :2], boxes[:, 2:]  # (N, 2), each x and y
    # is_within[i, j]: mark j lies within mark i
    is_within = (starts > starts[:, None]).all(axis=2) & (ends < ends[:, None]).all(axis=2)
    width = boxes[:, 2] - boxes[:, 0]
    is_wide = width > 0.1 * width[:, None]  # a digit, rather than dirt within the frame
    return np.asarray((is_within & _are_digits(marks) & is_wide).any(axis=1))


def _are_digits(marks: Sequence[Mark]) -> NDArray[np.bool_]:
    return np.array([mark.probability >= 0.5 for mark in marks], bool)
