"""Measure how well trained networks read whole pages.

1,000 pages drawn by program, by kind of disturbance.

    python benchmarks/pages.py RUN [RUN ...] [--pages 1000] [--seed 0] [--kind NAME ...] [--save
    DIR]

A RUN is a run folder, or a folder with runs, as `load_run` takes it. Each page is written by one
hand: scikit-learn's digits (8x8) or MNIST's training images, enlarged and turned into pen strokes,
or the strokes of `tools/detector/strokes.py`. Digits that a person could not read are left out:
with filled loops, blots, or an 8x8 neighbour of another class. MNIST's test set is not used. A page
depends only on the seed, its kind and its number. The columns:

- found: digits with a find at their place. right: digits found and read rightly.
- false: finds where no digit is, as a share of the digits; all of them, and those called certain.
- doubtful: digits found but called doubtful. certain wrong: of the finds called certain, those
  that are not right.
- lines: pages whose text is exactly right, with its lines and numbers. ms: the median time of
  `recognize` for a page.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from handwriting import FINE, jpeg, ramp, tiny
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from torch import nn

from mnist_lightning import MNIST, load_run, recognize
from mnist_lightning.data.base import DEFAULT_DATA_DIR
from mnist_lightning.errors import InputError

sys.path.append(str(Path(__file__).parent.parent / "tools/detector"))
from strokes import Floats, shape, smooth

# Signs that are no digits, as in strokes.SHAPES: strokes through points x,y of a square of 100
# units.
SIGNS = [
    *(
        "0,52/70,48|36,16/34,84",
        "0,50/60,48",
        "0,36/64,34|0,64/64,62",
        "0,24/60,84|60,22/0,86",
    ),  # + - = x
    *("84,-15/0,115", "26,-15 4,20 0,50 4,80 26,115", "0,-15 22,20 26,50 22,80 0,115"),  # / ( )
    *("0,96/3,98", "8,92/0,112", "0,36/3,38|0,84/3,86"),  # . , :
]
PLUS = SIGNS[0]
BRACKETS = [
    *SIGNS[5:7],
    "24,-15/0,-15|0,-15/0,115|0,115/24,115",
    "0,-15/24,-15|24,-15/24,115|24,115/0,115",
]
WORDS = [
    "Name",
    "Total",
    "Date",
    "Points",
    "Room",
    "Team",
    "Page",
    "Price",
    "from",
    "and",
    "per",
    "week",
]
PRINT = [cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX]
LETTERS = "ACEHKMNPRVWXaehkmnpruvwx"  # those that look like no digit
SCRIPTS = [cv2.FONT_HERSHEY_SCRIPT_SIMPLEX, cv2.FONT_HERSHEY_SCRIPT_COMPLEX]
LOOPS = {0: 1, 6: 1, 8: 2, 9: 1}  # of a readable digit
INK = 0.35  # the share of a pixel that ink must cover to count as inked
CELL = 1.1  # the width of a frame on a form, in heights of a digit
HANDS = ("UCI", "MNIST", "strokes")
BETWEEN = ("signs", "plus", "brackets", "words")  # styles with signs between the numbers
SAVED = 4  # pages of each kind
COLUMNS = [
    "pages",
    "digits",
    "found",
    "right",
    "false",
    "false, certain",
    "doubtful",
    "certain wrong",
    "lines",
    "ms",
]

Glyph = Floats  # (h, w), the share of each pixel that ink covers, without a margin
Samples = dict[
    tuple[str, int], NDArray[np.uint8]
]  # of a hand and a digit: images (N, 8, 8) or (N, 28, 28)


class Mark(NamedTuple):
    """A sign on a page."""

    digit: int  # -1: no digit
    line: int  # of the page, from 1
    number: int  # of the line, from 1
    hull: Floats  # (points, 2), around its ink

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in pixels; right and bottom are exclusive."""
        (left, top), (right, bottom) = np.floor(self.hull.min(0)), np.ceil(self.hull.max(0))
        return int(left), int(top), int(right), int(bottom)


class Page(NamedTuple):
    """A picture ``(H, W)`` or ``(H, W, 3)``, and the signs on it in reading order."""

    picture: Any  # uint8; float32 while it is made
    marks: list[Mark]


@dataclass
class Sheet:
    """A sheet of paper with writing on it."""

    ink: Floats  # (H, W), the share of each pixel that the pen's ink covers
    height: float  # of a digit, in pixels
    pen: float  # its width in pixels
    printed: Floats = field(init=False)  # (H, W), the share of each pixel that printed lines cover
    marks: list[Mark] = field(default_factory=list)
    pitch: float = 0.0  # from line to line

    def __post_init__(self) -> None:
        self.printed = np.zeros_like(self.ink)

    def put(
        self, glyph: Glyph, x: float, bottom: float, digit: int, line: int, number: int
    ) -> None:
        """Write a sign; the two integers say in which line and number."""
        left, top = round(x), round(bottom) - len(glyph)
        place = self.ink[max(top, 0) :, max(left, 0) :][: len(glyph), : glyph.shape[1]]
        np.maximum(place, glyph[: place.shape[0], : place.shape[1]], out=place)
        grown = cv2.dilate(
            np.pad(glyph > INK, (0, 1)).astype(np.uint8), np.ones((2, 2)), anchor=(1, 1)
        )
        hull = cv2.convexHull(np.argwhere(grown)[:, ::-1].astype(np.float32)).reshape(
            -1, 2
        ) + np.array([left, top], np.float32)
        self.marks.append(Mark(digit, line, number, hull))


# Glyphs


def draw(curves: Sequence[Floats], pen: float) -> Glyph:
    """Draw curves in pixels."""
    low = np.concatenate(curves).min(0) - pen / 2 - 1
    width, height = np.ceil(np.concatenate(curves).max(0) + pen / 2 + 1 - low).astype(int)
    canvas = np.zeros((height * FINE, width * FINE), np.uint8)
    for curve in curves:
        points = (
            ((curve - low) * FINE * 16).round().astype(np.int32)
        )  # 4 bits of a pixel's fractions
        cv2.polylines(canvas, [points], False, 255, max(1, round(pen * FINE)), cv2.LINE_AA, 4)
    return trim(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255))


def trim(ink: Floats) -> Glyph:
    x, y, width, height = cv2.boundingRect((ink > INK).astype(np.uint8))
    return ink[y : y + height, x : x + width]


def enlarged(image: NDArray[np.uint8], height: float) -> Glyph:
    """Enlarge an image smoothly, and make its blurred strokes a pen's.

    Dark, with an edge of about a pixel.
    """
    values = np.pad(image / np.float32(image.max()), 3)
    _, _, w, h = cv2.boundingRect((values > 0.4).astype(np.uint8))
    factor = height / max(h, w / 1.2)
    values = cv2.resize(values, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    values += 0.8 * (values - cv2.blur(values, (round(2.8 * factor), round(2.8 * factor))))
    for threshold in (
        0.6,
        0.52,
        0.45,
        0.38,
    ):  # as thin as possible, so that loops are open, but in one piece
        glyph = ((values - threshold) * max(1.5, factor / 1.2) + 0.5).clip(0, 1)
        _, labels, stats, _ = cv2.connectedComponentsWithStats((glyph > 0.1).astype(np.uint8))
        large = stats[:, 4] > 0.005 * glyph.size  # no specks
        glyph *= large[labels]
        if large.sum() == 2:  # the ground and the digit
            break
    return trim(glyph)


def written(
    digit: int, hand: str, height: float, pen: float, samples: Samples, rng: Generator
) -> Glyph:
    if hand == "strokes":
        return draw([curve * (height - pen) for curve in shape(digit, rng)], pen)
    for _ in range(20):  # until it is readable: its loops are open, and no stroke is a blot
        glyph = enlarged(rng.choice(samples[hand, digit]), height)
        ground = (np.pad(glyph, 1) < INK).astype(np.uint8)
        thickest = cv2.distanceTransform(1 - ground, cv2.DIST_L2, 5).max()
        if thickest < 0.14 * height and cv2.connectedComponents(ground)[0] - 2 >= LOOPS.get(
            digit, 0
        ):
            break
    return glyph


def broken(glyph: Glyph, height: float, rng: Generator) -> Glyph:
    """Cut a stroke across with a thin gap."""
    depth = cv2.distanceTransform((np.pad(glyph, 1) > 0.5).astype(np.uint8), cv2.DIST_L2, 5)[
        1:-1, 1:-1
    ]
    ridge = np.argwhere(
        (depth >= 0.8 * np.quantile(depth[depth > 0], 0.9)) & (depth >= cv2.blur(depth, (5, 5)))
    )
    y, x = rng.choice(ridge)
    near = np.argwhere(glyph[: y + round(height / 6), : x + round(height / 6)] > 0.5) - (y, x)
    near = near[np.abs(near).max(1) < height / 6]
    across = np.linalg.eigh(near.T @ near)[1][:, 0] * (1.6 * depth[y, x] + 2)
    ends = [
        tuple(int(16 * side) for side in (x + s * across[1], y + s * across[0])) for s in (-1, 1)
    ]
    gap = np.zeros(glyph.shape, np.uint8)
    cv2.line(
        gap, ends[0], ends[1], 255, max(2, round(height * rng.uniform(0.04, 0.07))), cv2.LINE_AA, 4
    )
    return glyph * (1 - gap / np.float32(255))


def strokes(signs: Sequence[str], height: float, pen: float, rng: Generator) -> Glyph:
    """Return one of some signs, written as in SIGNS."""
    pieces = [stroke.replace("/", " ").split() for stroke in str(rng.choice(signs)).split("|")]
    curves = [np.array([point.split(",") for point in points], float) / 100 for points in pieces]
    return draw(
        [smooth(curve + rng.normal(0, 0.01, curve.shape)) * height for curve in curves], pen
    )


def typed(word: str, font: int, height: float, pen: float) -> Glyph:
    """Return a word in one of OpenCV's fonts."""
    rows, columns = round(height * 2.4), round(height * (1.4 + len(word)))
    canvas = np.zeros((rows, columns), np.uint8)
    place = (round(height * 0.5), round(height * 1.7))
    cv2.putText(canvas, word, place, font, height / 24, 255, max(1, round(pen)), cv2.LINE_AA)
    return trim(canvas / np.float32(255))


def sign(height: float, pen: float, rng: Generator, style: str = "signs") -> Glyph:
    """Return a sign that is no digit: of arithmetic, a letter or a scribble, or as a style says."""
    if style == "plus":
        return strokes([PLUS], height, pen, rng)
    if style == "brackets":
        return strokes(BRACKETS, height, pen, rng)
    if style == "words" and rng.random() < 0.6:
        word, font = str(rng.choice(WORDS)), PRINT[rng.integers(3)]
        return typed(word, font, height * rng.uniform(0.5, 0.9), height * rng.uniform(0.02, 0.06))
    kind = 1 if style == "words" else rng.choice(3, p=[0.6, 0.3, 0.1])
    if kind == 0:
        return strokes(SIGNS, height, pen, rng)
    if kind == 1:
        font = SCRIPTS[rng.integers(2)]
        return typed(str(rng.choice(list(LETTERS))), font, height, pen)
    points = rng.uniform(0, 1, (16, 2)) * [0.9, 0.7] + np.linspace(0, 0.5, 16)[:, None] * [1, 0]
    return draw([smooth(points) * height], pen)


def overlap(left: Glyph, right: Glyph, most: float) -> float:
    """Return how far the right glyph can move to the left until the strokes just touch."""
    rows = min(len(left), len(right))  # they stand on the same line
    a, b = left[-rows:, ::-1] > INK, right[-rows:] > INK
    gaps = (a.argmax(1) + b.argmax(1))[a.any(1) & b.any(1)]
    return float(gaps.min(initial=most))


# Sheets


def places(glyphs: Sequence[Glyph], page: Sheet, style: str, rng: Generator) -> NDArray[np.float64]:
    """Return the left side of each digit of a number."""
    widths = np.array([glyph.shape[1] for glyph in glyphs])
    if style == "boxes":
        return CELL * page.height * (np.arange(len(glyphs)) + 0.5) - widths / 2
    gaps = page.height * rng.uniform(0.1, 0.4, len(glyphs))
    row = 0
    for i, (left, right) in enumerate(pairwise(glyphs), 1):
        row = (
            row + 1 if style == "touching" and rng.random() < 0.5 and row < 2 else 0
        )  # at most three in a row
        if row:
            gaps[i] = (
                -overlap(left, right, 0.35 * min(left.shape[1], right.shape[1])) - 0.3 * page.pen
            )
    gaps[0] = 0
    return np.cumsum(gaps) + np.cumsum(widths) - widths


def frame(
    page: Sheet, left: float, base: float, glyph: Glyph, rng: Generator
) -> tuple[float, float]:
    """Print a digit's frame, as on a form.

    Return the digit's place, in one of six cases touching the frame.
    """
    x = [round(left + (glyph.shape[1] + side * CELL * page.height) / 2) for side in (-1, 1)]
    y = [round(base - 1.25 * page.height), round(base + 0.25 * page.height)]
    cv2.rectangle(
        page.printed, (x[0], y[0]), (x[1], y[1]), 1, max(1, round(page.height * 0.025)), cv2.LINE_AA
    )
    if rng.random() > 1 / 6:
        return left, base + rng.normal(0, 0.03) * page.height
    return [(x[0] - 2, base), (x[1] + 2 - glyph.shape[1], base), (left, y[1] + 2)][rng.integers(3)]


def between(page: Sheet, x: float, base: float, line: int, rng: Generator, style: str) -> float:
    """Write a sign that is no digit behind a number; return where the next number can start."""
    glyph = sign(page.height, page.pen, rng, style)
    rows, columns = glyph.shape
    if x + columns + page.height > page.ink.shape[1] * 0.95:
        return x
    x -= 0.3 * page.height
    lift = (
        0.35
        if rows < 0.75 * page.height < 1.9 * columns
        else -0.15
        if rows > 1.15 * page.height
        else 0
    )
    page.put(glyph, x, base - lift * page.height, -1, line, 0)
    return x + columns + page.height * rng.uniform(0.45, 0.8)


def sheet(
    samples: Samples,
    rng: Generator,
    *,
    size: tuple[int, int] | None = None,
    share: tuple[float, float] = (0.055, 0.12),
    lines: int = 6,
    most: int = 60,
    hand: str = "",
    pen: tuple[float, float] = (0.05, 0.12),
    margin: float = 0.08,
    style: str = "",
) -> Sheet:
    """Write numbers on a sheet.

    Args:
        samples: The hands' digits.
        rng: The random source.
        size: Height and width in pixels; by default some.
        share: The least and the greatest height of a digit, as a share of the sheet's short side.
        lines: At most; the sheet may have fewer.
        most: Digits.
        hand: One of HANDS; by default one of them.
        pen: The least and the greatest width of its stroke, as a share of the digit's height.
        margin: The least, as a share of the sheet's side.
        style: "broken", "touching", "boxes", one of BETWEEN, or none.
    """
    short = float(np.clip(800 * np.exp(rng.normal(0, 0.25)), 600, 1600))
    sides = round(short), round(short * rng.uniform(1.25, 1.45))
    rows, columns = size or sides[:: 1 if rng.random() < 0.2 else -1]
    hand = hand or str(rng.choice(HANDS))
    height = rng.uniform(*share) * min(rows, columns)
    made = Sheet(
        np.zeros((rows, columns), np.float32), height, max(1.0, height * rng.uniform(*pen))
    )
    pitch = made.pitch = height * rng.uniform(1.8, 2.6)
    room = int((rows * (1 - 2 * margin) - height) / pitch) + 1
    count = max(1, min(room, lines if lines > 6 else int(rng.integers(1, lines + 1))))
    start = rows * margin + height + rng.uniform(0, (room - count) * pitch + 1)
    for line in range(1, count + 1):
        base, slope, number = start + (line - 1) * pitch, rng.normal(0, 0.005), 0
        left, right = columns * margin, columns * (1 - margin)
        x = left + rng.uniform(0, min(2 * height, max(right - left - 0.9 * height, 0)))
        right = max(right - rng.choice([0, 0.5]) * rng.uniform(0, right - x), x + 1.3 * height)
        while len(made.marks) < most and (number == 0 or x < right):
            has_sign = style in BETWEEN and number and rng.random() < 0.8
            if has_sign and len(made.marks) < most - 1:  # a digit follows
                x = between(made, x, base, line, rng, style)
            digits = rng.integers(
                0, 10, min(int(rng.integers(1, 6)), most - len(made.marks))
            ).tolist()
            sizes = height * rng.uniform(0.92, 1.08, len(digits))
            glyphs = [
                written(d, hand, s, made.pen, samples, rng)
                for d, s in zip(digits, sizes, strict=True)
            ]
            lefts = x + places(glyphs, made, style, rng)
            number += 1
            for i, (digit, glyph, place) in enumerate(
                zip(digits, glyphs, lefts.tolist(), strict=True)
            ):
                if place + glyph.shape[1] > right and (i or number > 1):
                    break
                bottom = base + slope * place + rng.normal(0, 0.03) * height * (style != "touching")
                if (
                    style == "broken" and digit != 6 and rng.random() < 0.7
                ):  # a 6 with a gap in its back is a 5
                    glyph = broken(glyph, height, rng)
                if style == "boxes":
                    place, bottom = frame(made, place, base, glyph, rng)
                made.put(glyph, place, bottom, digit, line, number)
            else:
                x = (
                    place
                    + glyph.shape[1]
                    + height * (rng.uniform(0.9, 2.0) + 0.4 * (style == "boxes"))
                )
                continue
            break
    return made


def rule(page: Sheet, pitch: float, x: float | None, y: float, width: float) -> None:
    """Print lines across, and down as well where ``x`` says where one of them is."""
    rows, columns = page.ink.shape
    for at in np.arange(y % pitch, rows, pitch).round().astype(int).tolist():
        cv2.line(page.printed, (0, at), (columns, at), 1, max(1, round(width)), cv2.LINE_AA)
    for at in (
        [] if x is None else np.arange(x % pitch, columns, pitch).round().astype(int).tolist()
    ):
        cv2.line(page.printed, (at, 0), (at, rows), 1, max(1, round(width)), cv2.LINE_AA)


# From a sheet to a picture


def paint(
    page: Sheet, rng: Generator, paper: Any = None, pen: Any = None, lines: Any = None
) -> Page:
    """Return the sheet in colours; by default a dark pen on light paper."""
    if paper is None:
        paper = rng.uniform(222, 252) * rng.uniform([0.97, 0.97, 0.9], [1, 1, 1])
    if pen is None:
        pen = np.array([[30, 30, 34], [24, 40, 120], [70, 70, 74], [120, 24, 30], [15, 15, 15]])[
            rng.integers(5)
        ]
        pen = pen + rng.uniform(-12, 25, 3)
    picture = np.empty((*page.ink.shape, 3), np.float32)
    for channel in range(3):
        ground = paper[channel]
        if lines is not None:
            ground = ground + page.printed * np.float32(lines[channel] - paper[channel])
        picture[..., channel] = ground + page.ink * (pen[channel] - ground)
    return Page(picture, page.marks)


def moved(marks: Sequence[Mark], matrix: NDArray[np.float64]) -> list[Mark]:
    return [
        mark._replace(hull=cv2.perspectiveTransform(mark.hull[:, None], matrix).reshape(-1, 2))
        for mark in marks
    ]


def seen(
    page: Page,
    rng: Generator,
    degrees: float,
    shift: float = 0.0,
    on_table: bool = True,
    desk: Callable[[int, int, Generator], Floats] | None = None,
) -> Page:
    """Return a page that is turned, with corners moved by up to a share of its sides.

    The rest is a table, or paper.
    """
    sides = np.array(page.picture.shape[1::-1])
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * sides
    corners = square + rng.uniform(0, shift, (4, 2)) * (sides - 2 * square)
    corners = corners @ cv2.getRotationMatrix2D((0, 0), degrees, 1)[:, :2].T
    free = rng.uniform(0.03, 0.15, (2, 2)) * sides.min() * on_table
    corners += free[0] - corners.min(0)
    width, height = np.ceil(corners.max(0) + free[1]).astype(int).tolist()
    paper = np.median(page.picture[::16, ::16], axis=(0, 1))
    ground = (
        (desk or table)(height, width, rng)
        if on_table
        else np.full((height, width, 3), paper, np.float32)
    )
    matrix = cv2.getPerspectiveTransform(square.astype(np.float32), corners.astype(np.float32))
    cv2.warpPerspective(
        page.picture, matrix, (width, height), ground, borderMode=cv2.BORDER_TRANSPARENT
    )
    return Page(ground, moved(page.marks, matrix))


def table(rows: int, columns: int, rng: Generator) -> Floats:
    """Return a table of wood, of something dark, or under a cloth."""
    kind = rng.integers(3)
    colour = [
        np.array([1, 0.72, 0.5]) * rng.uniform(70, 150),
        rng.uniform(15, 55, 3),
        rng.uniform(30, 130, 3),
    ][kind]
    grain = rng.normal(0, [12, 3, 4][kind], [(rows // 4, 6), (40, 40), (60, 60)][kind]).astype(
        np.float32
    )
    texture = cv2.resize(grain, (columns, rows), interpolation=cv2.INTER_CUBIC)
    if kind == 2:
        x, y = (
            np.sin(np.arange(side, dtype=np.float32) * 2 * np.pi / rng.uniform(4, 9))
            for side in (columns, rows)
        )
        texture += 7 * (x + y[:, None])
    return np.dstack([texture + np.float32(each) for each in colour])


def stripes(rows: int, columns: int, rng: Generator) -> Floats:
    """Return a dark table whose boards have a grain across the picture."""
    grain = rng.normal(0, 14, (rows // int(rng.integers(4, 9)), 12)).astype(np.float32)
    texture = cv2.resize(grain, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.dstack([texture + np.float32(each) for each in rng.uniform(28, 58, 3)])


def edged(page: Page, rng: Generator) -> Page:
    """Let a dark edge, of a notebook or a table, look in at one side of the picture or at two."""
    rows, columns = page.picture.shape[:2]
    wave = np.sin(np.arange(rows) / rows * rng.uniform(2, 6) + rng.uniform(0, 6))
    widths = columns * (rng.uniform(0.012, 0.03) + 0.004 * wave)
    x = np.arange(columns)
    x = x[:: 1 if rng.random() < 0.7 else -1]
    dark, rim = x < widths[:, None], x < widths[:, None] * rng.uniform(1.3, 2)
    picture = page.picture + 25 * rim[..., None].astype(np.float32)
    picture[dark] = rng.uniform(15, 55)
    if rng.random() < 0.4:
        picture[-int(rows * rng.uniform(0.01, 0.03)) :] = rng.uniform(15, 70)
    return page._replace(picture=picture)


def held(page: Page, rng: Generator) -> Page:
    """Return a page as a notepad with a spiral, held by fingers over a dark striped table."""
    rows, columns = page.picture.shape[:2]
    turn = np.linspace(0, 2 * np.pi, 24)
    ring = np.stack([np.cos(turn) * 0.012, np.sin(turn) * 0.03], 1) * rows
    spiral = [
        Mark(-1, 0, 0, (ring + np.array([x, 0.01 * rows])).astype(np.float32))
        for x in np.linspace(0.06, 0.94, int(rng.integers(9, 16))) * columns
    ]
    page = seen(
        page._replace(marks=page.marks + spiral), rng, rng.uniform(-6, 6), 0.04, desk=stripes
    )
    picture, marks = page.picture, page.marks[: -len(spiral)]
    thick, wire = 0.075 * rows, rng.uniform(150, 220)
    for mark in page.marks[-len(spiral) :]:
        hole = mark.hull[6].round().astype(int).tolist()  # the ring's lowest point
        cv2.circle(picture, hole, round(0.009 * rows), (45, 45, 50), -1, cv2.LINE_AA)
        cv2.polylines(
            picture, [mark.hull.round().astype(np.int32)], True, (wire,) * 3, 4, cv2.LINE_AA
        )
    ink = np.concatenate([mark.hull for mark in marks])
    left, right = ink[:, 0].min() - thick, ink[:, 0].max() + thick
    skin = rng.uniform(0.55, 1) * np.array([235, 180, 150])
    y = picture.shape[0] * rng.uniform(0.45, 0.6)
    tips = [(-1.0, left, y + i * 1.15 * thick) for i in range(3)]
    tips.append((1.0, right, y))
    width = picture.shape[1]
    for side, end, height in tips:
        tip = min(end, 0.17 * width) if side < 0 else max(end, 0.83 * width)
        start = (round(width * (side > 0) + side * thick), round(height + 0.8 * thick))
        cv2.line(picture, start, (round(tip), round(height)), skin.tolist(), round(thick))
    return Page(picture, marks)


def lit(page: Page, rng: Generator, shadow: bool = False) -> Page:
    """Light a page from one side, with dark corners, and let a shadow's edge fall on it."""
    coarse = np.empty((256, 256), np.float32)
    arch = 1 - rng.uniform(0, 0.15) * np.linspace(-1, 1, 256) ** 2
    light = (
        (1 + rng.uniform(0.05, 0.25 if shadow else 0.12) * (ramp(coarse, rng) - 0.7))
        * arch
        * arch[:, None]
    )
    if shadow and rng.random() < 0.7:
        edge = ramp(coarse, rng) - rng.uniform(-0.6, 0.6)
        light *= 1 - rng.uniform(0.1, 0.25) * (1 + np.tanh(edge * rng.uniform(4, 30)))
    light = cv2.resize(light.astype(np.float32), page.picture.shape[1::-1])
    return page._replace(picture=page.picture * light[..., None])


def finished(
    page: Page, rng: Generator, blur: float = 0.0, noise: float = 1.0, quality: float = 92
) -> Page:
    """Return the page as a camera or scanner stores it."""
    picture = cv2.GaussianBlur(page.picture, (0, 0), blur) if blur > 0.3 else page.picture
    grain = rng.standard_normal(picture.shape[:2], np.float32) * np.float32(noise)
    return page._replace(picture=jpeg(picture + grain[..., None], quality))


def photographed(page: Page, rng: Generator) -> Page:
    return finished(
        lit(page, rng), rng, rng.uniform(0.4, 1.2), rng.uniform(1, 3), rng.uniform(70, 95)
    )


# Kinds


def clean(samples: Samples, rng: Generator, **options: Any) -> Page:
    return finished(paint(sheet(samples, rng, **options), rng), rng)


def shadow(samples: Samples, rng: Generator) -> Page:
    page = lit(paint(sheet(samples, rng), rng), rng, shadow=True)
    return finished(page, rng, rng.uniform(0, 0.8), rng.uniform(1, 3), rng.uniform(70, 95))


def laid(samples: Samples, rng: Generator, shift: float = 0.0, cut: bool = False) -> Page:
    page = paint(sheet(samples, rng, margin=0.12 if cut else 0.08), rng)
    degrees = rng.uniform(-15, 15) if rng.random() < 0.7 else 0.0
    page = seen(page, rng, degrees / 2 if shift else degrees, shift)
    if (
        cut
    ):  # the picture ends between the sheet's edge and the writing, at one side or at two that meet
        inner = np.concatenate([mark.hull for mark in page.marks])
        low, high = np.zeros(2), np.array(page.picture.shape[1::-1], float)
        first = rng.integers(2)
        for axis in (first, 1 - first) if rng.random() < 0.5 else (first,):
            if rng.random() < 0.5:
                low[axis] = max(inner[:, axis].min() - rng.uniform(15, 60), 0)
            else:
                high[axis] = min(inner[:, axis].max() + rng.uniform(15, 60), high[axis])
        (left, top), (right, bottom) = low.astype(int), high.astype(int)
        matrix = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]], float)
        page = Page(
            np.ascontiguousarray(page.picture[top:bottom, left:right]), moved(page.marks, matrix)
        )
    return photographed(page, rng)


def rotated(samples: Samples, rng: Generator) -> Page:
    return finished(
        seen(paint(sheet(samples, rng), rng), rng, rng.uniform(-30, 30), on_table=False), rng
    )


def turned(samples: Samples, rng: Generator, degrees: tuple[float, ...]) -> Page:
    """Return a page with many lines that is turned by about one of some angles."""
    page = paint(sheet(samples, rng, lines=7), rng)
    angle = degrees[rng.integers(len(degrees))] + rng.uniform(-3, 3)
    return finished(seen(page, rng, angle, on_table=False), rng)


def dark_edge(samples: Samples, rng: Generator) -> Page:
    """Return a large grey page with pencil digits and a dark edge beside it."""
    size = (1600, 1200)[:: 1 if rng.random() < 0.7 else -1]
    page = sheet(samples, rng, size=size, hand="strokes", pen=(0.03, 0.05), share=(0.07, 0.12))
    paper = rng.uniform(165, 215) * rng.uniform([0.98, 0.97, 0.93], [1, 1, 1])
    made = lit(paint(page, rng, paper, paper - rng.uniform(75, 120)), rng)
    return finished(edged(made, rng), rng, rng.uniform(0.6, 1.2), 2.5, rng.uniform(75, 95))


def notepad(samples: Samples, rng: Generator) -> Page:
    """Return a ruled notepad that somebody holds over a table."""
    size = round(rng.uniform(1000, 1250)), round(rng.uniform(720, 850))
    page = sheet(samples, rng, size=size, share=(0.07, 0.1), margin=0.16, pen=(0.05, 0.08))
    rule(page, page.pitch, None, page.marks[0].box[3], 2)
    made = held(paint(page, rng, lines=line_colour(rng)), rng)
    return photographed(lit(made, rng, shadow=True), rng)


def line_colour(rng: Generator) -> NDArray[np.float64]:
    """Return the colour of printed lines: blue or grey, light or dark."""
    blue, grey = rng.uniform([90, 120, 180], [170, 195, 225]), np.full(3, rng.uniform(90, 195))
    return blue if rng.random() < 0.6 else grey


def ruled(samples: Samples, rng: Generator) -> Page:
    page = sheet(samples, rng)
    pitch = page.pitch * (0.5 if rng.random() < 0.3 else 1)
    offset = (
        rng.normal(0, 0.03) * page.height
        if rng.random() < 0.6
        else rng.uniform(-0.5, 0.5) * page.height
    )
    rule(
        page,
        pitch,
        None,
        page.marks[0].box[3] + offset,
        rng.uniform(1, 2.4) * min(page.ink.shape) / 800,
    )
    made = paint(page, rng, lines=line_colour(rng))
    return finished(
        seen(made, rng, rng.uniform(-1, 1), on_table=False),
        rng,
        rng.uniform(0, 0.6),
        1.5,
        rng.uniform(75, 95),
    )


def squared(samples: Samples, rng: Generator, alone: bool = False) -> Page:
    if alone:
        side = int(rng.integers(110, 320))
        page = sheet(
            samples, rng, size=(side, side), share=(0.45, 0.65), lines=1, most=1, margin=0.1
        )
    else:
        page = sheet(samples, rng)
    pitch = page.height * rng.uniform(0.5, 0.95)
    at = (
        rng.uniform(0, 2, 2) if alone else rng.uniform(0, pitch, 2)
    )  # alone: a line runs along the edge
    rule(page, pitch, at[0], at[1], rng.uniform(1, 1.8) * page.height / 60)
    made = paint(page, rng, lines=line_colour(rng))
    made = made if alone else seen(made, rng, rng.uniform(-1, 1), on_table=False)
    return finished(made, rng, rng.uniform(0, 0.6), 1.5, rng.uniform(75, 95))


def underlined(samples: Samples, rng: Generator) -> Page:
    page = sheet(samples, rng)
    for _, group in groupby(page.marks, lambda mark: (mark.line, mark.number)):
        points = np.concatenate([mark.hull for mark in group])
        (left, _), (right, bottom) = (
            points.min(0),
            points.max(0),
        )  # the line touches at least the lowest digit
        x = np.linspace(
            left - rng.uniform(0.05, 0.3) * page.height,
            right + rng.uniform(0.05, 0.3) * page.height,
            4,
        )
        y = bottom - page.pen * rng.uniform(0, 0.6) + rng.normal(0, 0.01, 4) * page.height
        curve = (smooth(np.stack([x, y], 1)) * 16).round().astype(np.int32)
        cv2.polylines(page.ink, [curve], False, 1, max(1, round(page.pen * 0.8)), cv2.LINE_AA, 4)
    return finished(paint(page, rng), rng)


def boxed(samples: Samples, rng: Generator) -> Page:
    page = sheet(samples, rng, style="boxes", share=(0.055, 0.1))
    colours = rng.uniform(
        [[20, 20, 20], [90, 90, 90], [180, 60, 50]],
        [[60, 60, 60], [170, 170, 170], [225, 140, 120]],
    )
    return finished(paint(page, rng, lines=colours[rng.integers(3)]), rng, noise=1.5)


def pencil(samples: Samples, rng: Generator) -> Page:
    page = sheet(samples, rng, hand="strokes", pen=(0.03, 0.06))
    page.ink *= rng.uniform(0.65, 1, page.ink.shape).astype(np.float32)
    paper = rng.uniform(225, 250)
    return finished(
        paint(page, rng, np.full(3, paper), np.full(3, paper - rng.uniform(60, 120))),
        rng,
        noise=1.5,
    )


def poor(samples: Samples, rng: Generator) -> Page:
    page = lit(paint(sheet(samples, rng), rng), rng)
    return finished(page, rng, rng.uniform(1, 2.2), rng.uniform(4, 10), rng.uniform(12, 35))


def chalk(samples: Samples, rng: Generator) -> Page:
    page = sheet(samples, rng)
    page.ink *= (rng.standard_normal(page.ink.shape, np.float32) * 0.2 + 0.85).clip(0.2, 1)
    board = np.array([[0.75, 1, 0.85], [1, 1, 1]])[rng.integers(2)] * rng.uniform(30, 70)
    made = paint(
        page, rng, board, rng.uniform(205, 240) * rng.uniform([0.95, 0.95, 0.85], [1, 1, 1])
    )
    dust = cv2.resize(
        rng.normal(0, 5, (6, 8)).astype(np.float32),
        page.ink.shape[::-1],
        interpolation=cv2.INTER_CUBIC,
    )
    return finished(lit(made._replace(picture=made.picture + dust[..., None]), rng), rng, 0.6, 2)


def many(samples: Samples, rng: Generator) -> Page:
    rows, columns = sorted(
        (round(rng.uniform(1050, 1500)), round(rng.uniform(1400, 1700))), reverse=True
    )
    share = (rows * columns * 0.7 / (200 * 1.3 * 2.2)) ** 0.5 / columns
    return clean(
        samples,
        rng,
        size=(rows, columns),
        share=(0.76 * share, 0.86 * share),
        lines=40,
        most=200,
        margin=0.05,
    )


def small(samples: Samples, rng: Generator) -> Page:
    digit, paper = int(rng.integers(10)), int(rng.choice([0, 255]))
    picture = tiny([digit], rng, 1, paper)
    ink = np.abs(picture.astype(np.float32) - paper) / 255
    x, y, width, height = cv2.boundingRect((ink > INK).astype(np.uint8))
    hull = np.array([[x, y], [x + width, y + height]], np.float32)
    return Page(picture, [Mark(digit, 1, 1, hull)])


KINDS: dict[str, Callable[[Samples, Generator], Page]] = {
    "clean": clean,
    "uneven light or a shadow's edge": shadow,
    "sheet on a table": laid,
    "sheet on a table, seen at an angle": partial(laid, shift=0.12),
    "sheet on a table, cut off by the picture": partial(laid, cut=True),
    "page turned by up to 30 degrees": rotated,
    "ruled lines": ruled,
    "squared paper": squared,
    "underlined numbers": underlined,
    "digits in boxes": boxed,
    "broken strokes": partial(clean, style="broken"),
    "touching digits": partial(clean, style="touching"),
    "other signs between the digits": partial(clean, style="signs"),
    "pencil": pencil,
    "thin pen": partial(clean, hand="strokes", pen=(0.015, 0.03)),
    "blur, noise and strong compression": poor,
    "chalk on a blackboard": chalk,
    "12 megapixels": partial(clean, size=(4000, 3000)),
    "200 digits on a page": many,
    "one digit on squared paper": partial(squared, alone=True),
    "28x28 pixels, pen 1 px": small,
    "letters and print": partial(clean, style="words", lines=7, share=(0.045, 0.075)),
    "plus signs": partial(clean, style="plus", lines=7, share=(0.045, 0.075)),
    "brackets": partial(clean, style="brackets", lines=7, share=(0.045, 0.075)),
    "page on its side": partial(turned, degrees=(90, -90)),
    "page upside down": partial(turned, degrees=(180,)),
    "dark edge": dark_edge,
    "held notepad": notepad,
}


def hands(data_dir: str) -> Samples:
    """Return the digits of scikit-learn and MNIST's training images, by hand and digit."""
    uci, (images, labels) = load_digits(), MNIST(data_dir).load("train")
    # 8x8 pixels are not always readable: a digit counts if it is like its three nearest neighbours.
    neighbours = (
        NearestNeighbors(n_neighbors=4).fit(uci.data).kneighbors(uci.data, return_distance=False)
    )
    plain = (uci.target[neighbours] == uci.target[:, None]).all(1)
    sets = {
        "UCI": (uci.images[plain].astype(np.uint8), uci.target[plain]),
        "MNIST": (images, labels),
    }
    return {
        (hand, d): images[labels == d] for hand, (images, labels) in sets.items() for d in range(10)
    }


def pages(kind: str, count: int, seed: int, samples: Samples) -> Iterator[Page]:
    for index in range(count):
        yield KINDS[kind](samples, np.random.default_rng([seed, index, *kind.encode()]))


# Measuring


def matched(marks: Sequence[Mark], found: Sequence[Any]) -> dict[int, int]:
    """Return for each find its digit among the marks: one to one, the best overlap first."""
    if not marks or not found:
        return {}
    sides = [np.array([each.box for each in group], float) for group in (marks, found)]
    size, middle = ([box[:, 2:] + factor * box[:, :2] for box in sides] for factor in (-1, 1))
    # A 1 is as wide as a stroke of the pen: let it be a third as wide as it is high.
    size = [np.maximum(each, each.max(1, keepdims=True) / 3) for each in size]
    apart = np.abs(middle[0][:, None] - middle[1]) / 2
    mine, theirs = size[0][:, None], size[1]
    common = ((mine + theirs) / 2 - apart).clip(0, np.minimum(mine, theirs)).prod(-1)
    share = common / (mine.prod(-1) + theirs.prod(-1) - common)
    alike = np.abs(np.log2(theirs.max(-1) / mine.max(-1))) <= 1
    fits = (share >= 0.5) | (alike & (apart <= mine / 2).all(-1))
    pairs: dict[int, int] = {}
    for true, find in sorted(np.argwhere(fits).tolist(), key=lambda pair: -share[tuple(pair)]):
        if find not in pairs and true not in pairs.values():
            pairs[find] = true
    return pairs


def text(digits: Sequence[Any]) -> str:
    """Return lines of numbers; what they end with says where a line ends."""
    places = [(digit.line, digit.number, digit.digit) for digit in digits]
    lines = groupby(places, lambda place: place[0])
    numbers = [
        [list(number) for _, number in groupby(line, lambda place: place[1])] for _, line in lines
    ]
    return "\n".join(
        " ".join("".join(str(place[2]) for place in number) for number in line) for line in numbers
    )


def score(page: Page, found: Sequence[Any]) -> NDArray[np.float64]:
    """Return counts, in the order of the columns.

    The last is the number of finds called certain.
    """
    truth = [mark for mark in page.marks if mark.digit >= 0]
    pairs = matched(truth, found)
    sure = [find.certain for find in found]
    right = [i in pairs and find.digit == truth[pairs[i]].digit for i, find in enumerate(found)]
    false = [i for i in range(len(found)) if i not in pairs]
    wrong = sum(certain and not ok for certain, ok in zip(sure, right, strict=True))
    shares = [
        len(pairs),
        sum(right),
        len(false),
        sum(sure[i] for i in false),
        sum(not sure[i] for i in pairs),
    ]
    return np.array([1, len(truth), *shares, wrong, text(truth) == text(found), sum(sure)], float)


def shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(counts[2:9] / [*[counts[1]] * 5, max(counts[9], 1), counts[0]])


def row(
    name: str, counts: NDArray[np.float64], parts: NDArray[np.float64], times: Sequence[float]
) -> str:
    cells = [name, f"{counts[0]:,.0f}", f"{counts[1]:,.0f}", *(f"{part:.1%}" for part in parts)]
    return f"| {' | '.join(cells)} | {np.median(times):.0f} |"


def save(page: Page, found: Sequence[Any], stem: Path) -> None:
    """Write a page, its text, and a copy.

    True boxes are green, wrong finds red, doubtful ones orange.
    """
    picture = page.picture if page.picture.ndim == 3 else np.dstack([page.picture] * 3)
    Image.fromarray(picture).save(stem.with_suffix(".jpg"), quality=95)
    truth = [mark for mark in page.marks if mark.digit >= 0]
    stem.with_suffix(".txt").write_text(text(truth) + "\n")
    copy, pairs, thick = (
        picture.copy(),
        matched(truth, found),
        max(1, min(picture.shape[:2]) // 500),
    )
    for mark in page.marks:
        cv2.rectangle(
            copy,
            mark.box[:2],
            mark.box[2:],
            (0, 170, 0) if mark.digit >= 0 else (150, 150, 150),
            thick,
        )
    for index, find in enumerate(found):
        sure = (0, 90, 255) if find.certain else (255, 140, 0)
        colour = sure if index in pairs and truth[pairs[index]].digit == find.digit else (235, 0, 0)
        cv2.rectangle(
            copy, find.box[:2], find.box[2:], colour, thick if colour != (0, 90, 255) else 1
        )
        scale, place = (
            max(0.35, (find.box[3] - find.box[1]) / 90),
            (find.box[0], max(12, find.box[1] - 2)),
        )
        cv2.putText(
            copy,
            str(find.digit),
            place,
            cv2.FONT_HERSHEY_SIMPLEX,
            min(scale, 4),
            colour,
            thick,
            cv2.LINE_AA,
        )
    Image.fromarray(copy).save(stem.with_name(f"{stem.name}, read.jpg"), quality=90)


def measure(
    net: nn.Module, kind: str, count: int, seed: int, samples: Samples, folder: Path | None
) -> Any:
    """Return the counts of a kind, and the milliseconds for each page."""
    total, times = np.zeros(10), []
    for index, page in enumerate(pages(kind, count, seed, samples)):
        found: Sequence[Any] = []
        start = time.perf_counter()
        with suppress(InputError):  # too many marks for a page of digits
            found = recognize([page.picture], net)[0]
        times.append((time.perf_counter() - start) * 1000)
        total += score(page, found)
        if folder and index < SAVED:
            save(page, found, folder / f"{kind}, {index}")
    return total, times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run folder, or a folder with runs"
    )
    parser.add_argument("--pages", type=int, default=1000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="of the pages")
    parser.add_argument(
        "--kind", nargs="+", choices=list(KINDS), metavar="NAME", help="only these kinds"
    )
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder with MNIST")
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help=f"write the first {SAVED} pages of each kind"
    )
    args = parser.parse_args()
    try:
        samples = hands(args.data_dir)
    except InputError as error:
        print(f"pages.py needs MNIST's training images: {error}", file=sys.stderr)
        sys.exit(2)
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        net = load_run(run).model.net
        print(f"\n| {run} | {' | '.join(COLUMNS)} |")
        print("|---" * (1 + len(COLUMNS)) + "|")
        all_counts: list[NDArray[np.float64]] = []
        times: list[float] = []
        for place, kind in enumerate(KINDS):
            if not args.kind or kind in args.kind:
                count = max(
                    1, args.pages * (place + 1) // len(KINDS) - args.pages * place // len(KINDS)
                )
                counts, each = measure(net, kind, count, args.seed, samples, args.save)
                print(row(kind, counts, shares(counts), each), flush=True)
                all_counts, times = [*all_counts, counts], times + each
        total = np.sum(all_counts, axis=0)
        print(row("**all pages**", total, shares(total), times))
        mean = np.mean([shares(counts) for counts in all_counts], axis=0)
        print(row("**mean of the kinds**", total, mean, times), flush=True)


if __name__ == "__main__":
    main()
