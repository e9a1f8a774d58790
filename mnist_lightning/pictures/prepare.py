"""From a picture of digits to images like MNIST's: find each digit, clean, scale and centre it."""

from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError
from mnist_lightning.pictures.digits import MAX_DIGITS, read_lines
from mnist_lightning.pictures.ink import Pixels, find_ink, grey_levels
from mnist_lightning.pictures.marks import Mark, centred
from mnist_lightning.pictures.paper import find_sheet, skew

WORKING_SIDE = 1600  # larger pictures are first shrunk to it; a digit of 1/80 of the page still has 20 pixels
NUMBER_GAP = 0.6  # of the digits' height: a wider gap begins a new number

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive


class Found(NamedTuple):
    """One digit found in a picture."""

    pixels: Pixels  # (28, 28), white on black, as the network takes it
    box: Box  # in the picture's pixels
    line: int  # of the page, from 1
    number: int  # within the line, from 1
    size: float  # its height, as a share of the median of the picture's digits


def find_digits(picture: Pixels) -> list[Found]:
    """Find the digits of a picture in reading order, and prepare each as MNIST's were.

    The function finds the sheet of paper and turns it upright, removes an uneven background, ruled lines and frames,
    joins broken strokes and separates digits that touch. It crops each digit, scales its longest side to 20 pixels, and
    puts its centre of mass at the centre of 28x28 (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/). A
    picture and its negative give the same images.

    Args:
        picture: Grey ``(H, W)``, grey with alpha ``(H, W, 2)``, RGB ``(H, W, 3)`` or RGBA ``(H, W, 4)``, turned by 30
            degrees at most.

    Returns:
        One entry per digit; an empty list for an empty page.

    Raises:
        InputError: If the array has another type or shape, or more than 500 digits.
    """
    is_picture = picture.ndim > 1 and picture.size > 0 and picture.shape[2:] in ((), (2,), (3,), (4,))
    if picture.dtype != np.uint8 or not is_picture:
        raise InputError(f"expected pixels, uint8 (H, W) or (H, W, 2 to 4), got {picture.dtype} {picture.shape}")
    grey = grey_levels(picture)  # (H, W)
    height, width = grey.shape
    scale = WORKING_SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    to_picture = np.diag([width / grey.shape[1], height / grey.shape[0], 1])
    page, to_grey = find_sheet(grey)
    inked = find_ink(page)
    if inked is None:
        return []
    ink, mask = inked
    angle = skew(mask)
    if angle:
        ink, mask, turned = _turned(ink, mask, angle)
        to_grey = to_grey @ turned
    lines = read_lines(ink, mask)
    if sum(map(len, lines)) > MAX_DIGITS:
        raise InputError(f"expected at most {MAX_DIGITS} digits, found {sum(map(len, lines)):,}")
    tall = np.median([mark.ink.shape[0] for marks in lines for mark in marks] or [1])
    return [
        Found(
            centred(mark.ink),
            _box(mark, to_picture @ to_grey, width, height),
            line,
            number,
            float(mark.ink.shape[0] / tall),
        )
        for line, marks in enumerate(lines, 1)
        for mark, number in zip(marks, _numbers(marks), strict=True)
    ]


def _turned(ink: Pixels, mask: Pixels, angle: float) -> tuple[Pixels, Pixels, NDArray[np.float64]]:
    """Turn a page by an angle in degrees; return the transform from its new pixels to the old ones, too."""
    height, width = ink.shape
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    size = round(width * abs(cos) + height * abs(sin)), round(width * abs(sin) + height * abs(cos))
    back = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    back[:2, 2] = np.array([width, height]) / 2 - back[:2, :2] @ np.array(size) / 2
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    ink = cv2.warpAffine(ink, back[:2], size, flags=flags)
    mask = cv2.warpAffine(mask * np.uint8(255), back[:2], size, flags=flags)
    return ink, cv2.threshold(mask, 127, 1, cv2.THRESH_BINARY)[1], back


def _box(mark: Mark, transform: NDArray[np.float64], width: int, height: int) -> Box:
    """Return the box around a mark in the picture's pixels."""
    corners = [(x, y, 1) for x in (mark.left, mark.right) for y in (mark.top, mark.bottom)]
    x, y, w = transform @ np.array(corners).T
    x, y = (x / w).clip(0, width).round().astype(int), (y / w).clip(0, height).round().astype(int)
    return int(x.min()), int(y.min()), int(x.max()), int(y.max())


def _numbers(line: list[Mark]) -> list[int]:
    """Return for each digit of a line the number that it belongs to, from 1."""
    tall = np.median([mark.ink.shape[0] for mark in line])
    number, numbers = 1, [1]
    for before, mark in pairwise(line):
        number += int(mark.left - before.right > NUMBER_GAP * tall)
        numbers.append(number)
    return numbers
