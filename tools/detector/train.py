"""Train the network that tells digits from other marks in pictures: pictures/detector.onnx.

    python tools/detector/train.py [--data_dir DIR] [--strangers NPZ ...] [--seed 0] [--epochs 8]
    [--output FILE]

It learns from deformed images of MNIST's training set, from other people's digits, of which every
tenth is held out, from scikit-learn's digits, from the strokes of strokes.py, and from letters,
signs, pieces, neighbours that touch, rows, frames, lines and blots. An NPZ file has crops of
digits, white on black, ``images (N, h, w)``, and ``labels (N,)``. The table says, for each kind of
the held-out marks, how many are rightly read, how many are called no digit, and the mean of -log p
of the right class. The package onnx is needed.
"""

import argparse
from functools import partial
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from strokes import SHAPES, shape, smooth
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mnist_lightning import MNIST
from mnist_lightning.data.base import DEFAULT_DATA_DIR
from mnist_lightning.pictures import detector
from mnist_lightning.pictures.detector import CLASSES, NO_DIGIT, prepared

SIGN, FRAME = 10, 11  # shapes besides the digits
SIZE, EDGE = 80, 51  # a digit's height in pixels; the reader takes fainter pixels for paper
TRAIN, VAL = 480_000, 20_000  # marks
POOL = 20_000  # digits from which others are made
BATCH = 256  # marks per step
# The logarithm of a ratio: the reader meets 4.5 digits for each other mark; here they are as
# frequent.
PRIOR = 1.5
CLEAN = 0.05  # a mark meant to be no digit, but as surely a digit as this, is not learned from
LETTERS = 'ACEFGHKMNPRTUVWXYacefhkmnprtuvwx+-=*()[]<>?!#%&@$:;~^"'
FONTS = (
    "DejaVuSans[-M.]*",
    "DejaVuSerif[-.]*",
    "STIXGeneral*",
)  # of matplotlib; with "Serif" only for validation
# Letters, signs and pieces of grids in the strokes of strokes.py. A corner at the upper right
# would be a 7.
SIGNS = """
50,0/50,100|0,50/100,50 0,30/100,30|0,70/100,70 0,0/100,100|100,0/0,100 0,50/100,50
0,60/30,100/100,0 0,100/50,0/100,100|20,62/80,62 80,0/0,0/0,100/80,100|0,50/65,50
80,0/0,0/0,100|0,48/65,48 0,0/45,100/90,0 0,0/0,100|85,0/85,100|0,50/85,50
0,0/0,100|80,0/0,55/85,100 0,100/0,0/50,60/100,0/100,100 0,100/0,0/90,100/90,0
0,0/25,100/50,30/75,100/100,0 0,100/0,0_70,5_70,50_0,55/80,100 0,100/0,0_70,5_75,50_0,58
0,0/100,0|50,0/50,100 90,15_60,0_20,12_0,50_20,88_60,100_92,86 0,0/0,100/75,100
0,0_2,70_40,100_78,72_82,0 0,0/0,100|0,60_30,42_55,55_58,100 0,0/0,100|0,40_40,0_80,30_82,100
0,0/0,100|0,30_25,5_45,20_48,100|48,30_70,5_95,20_98,100 0,0/0,100|0,40_35,5_80,10
5,52/90,50_80,12_45,0_10,22_2,60_30,98_85,88 45,0/45,80_60,100_85,90|10,28/85,28
80,5_55,0_45,20_42,100|10,40/75,38 5,20_40,0_75,18_60,45_38,68|36,95/40,98
90,0/10,100|15,5/22,22|80,80/85,97 100,0/0,50/100,100 0,0/100,50/0,100
30,0/20,100|75,0/65,100|0,30/100,28|0,70/95,68 0,50/100,50|65,15/100,50/65,85
0,0/50,50/100,0|50,50/50,100 50,0/50,100|5,25/95,75|95,25/5,75 0,0/0,100|50,0/50,100|100,0/100,100
50,5/50,12|0,50/100,50|50,88/50,95 100,0/0,0/0,100 100,0/100,100/0,100 0,0/0,100/100,100
0,0/0,100/100,100/100,0 0,100/0,0/100,0/100,100 0,40/100,40 100,0/0,0/0,100/100,100
0,0/0,100|0,50/100,50 0,100/100,100|50,0/50,100 0,10/20,10|40,10/60,10|80,10/100,10
0,0/100,0/100,100/0,100/0,0 0,0/100,0/100,100/0,100/0,0|0,50/100,50
"""
FRAMES = """
0,0/100,0/100,100/0,100/0,0 0,0/0,100/100,100/100,0
50,0_85,15_100,50_85,85_50,100_15,85_0,50_15,15_50,0
"""
# More ways to write a digit: a long flag, a foot, a bar, an open top, a slash.
HANDS = [
    (1, "0,44 28,26/66,0/56,100"),
    (1, "0,34 22,22/48,0/46,100"),
    (1, "6,58/62,0/60,100"),
    (1, "0,46 30,28/78,0/36,100"),
    (1, "12,34/52,0/50,100|8,100/92,98"),
    (1, "4,40 30,22/56,0/54,100|20,98/96,100"),
    (1, "0,50/70,0/50,100|10,96/90,94"),
    (7, "10,16/12,2/86,0/48,100|26,52/82,46"),
    (7, "0,4/80,0/40,100|14,50/76,56"),
    (7, "4,20/10,4 40,10/86,2/60,50 50,100"),
    (4, "30,0/8,58/92,54|62,28/56,100"),
    (4, "20,4 14,40/40,56/90,48|70,0/60,100"),
    (4, "40,0/0,70/70,62|76,44/60,100"),
    (0, "50,0 18,12 8,50 18,88 50,100 82,88 92,50 82,12 50,0|88,4/12,96"),
    (0, "60,6 24,10 10,50 24,92 60,96 88,60 80,14 44,2 30,20"),
    (9, "84,12 44,0 14,18 34,44 66,38 84,12/84,58 72,92 16,98"),
    (9, "78,8 40,2 20,24 40,46 76,36/80,4/76,64 50,100 8,92"),
    (8, "84,10 30,8 24,30 78,64 66,98 22,92 30,62 84,14"),
    (8, "20,10 80,90 50,100 22,84 80,10 50,0 20,14"),
    (5, "90,0/30,2/22,40 60,44 86,66 60,96 10,98"),
    (3, "10,4/84,0/40,40 86,60 70,94 6,96"),
    (2, "4,20 40,0 76,14 60,46/4,96/100,92"),
    (6, "70,0 30,30 10,70 40,100 84,84 70,58 24,70"),
    (2, "10,20 50,0 80,20 40,70 6,92 20,74 50,92 100,96"),
    (0, "44,4 20,16 10,50 20,86 48,100 78,86 90,50 82,20"),
    (0, "40,2 18,24 14,60 30,94|72,6 86,36 80,74 58,98"),
    (0, "42,0 18,20 12,56 22,90|30,98/60,94|70,4 84,30 82,66 66,92"),
    (0, "60,0 26,10 10,50 26,90 52,100|70,8 88,46 76,86 60,98"),
]
SHAPES += HANDS
SHAPES += [
    (kind, each.replace("_", " "))
    for kind, text in ((SIGN, SIGNS), (FRAME, FRAMES))
    for each in text.split()
]
# The kinds of marks, and their shares in percent.
KINDS = {
    "mnist": 11,
    "plain": 6,
    "stranger": 8,
    "crop": 5,
    "uci": 2,
    "stroke": 9,
    "printed": 2,
    "squeezed": 4,
    "broken": 4,
    "ruled": 3,
    "clipped": 3,
    "comma": 1,
}  # digits
KINDS |= {
    "letter": 5,
    "sign": 7,
    "bracket": 2,
    "piece": 5,
    "touching": 11,
    "neighbour": 3,
    "row": 2,
    "framed": 2,
    "underlined": 2,
}
KINDS |= {"scribble": 1, "blot": 1, "texture": 1}

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]


def tight(mark: Pixels) -> Pixels:
    """Remove what is fainter than ink, and the margins."""
    mark = cv2.threshold(mark, EDGE, 255, cv2.THRESH_TOZERO)[1]
    x, y, width, height = cv2.boundingRect(mark)
    return mark[y : y + height, x : x + width]


def is_bar(mark: Pixels) -> bool:
    """Return whether a mark is narrow and steep, as a 1 is."""
    narrow, wide = sorted(cv2.minAreaRect(cv2.findNonZero(mark))[1])
    return mark.shape[1] < mark.shape[0] and narrow < 0.4 * wide


def drawn(curves: list[NDArray[np.float32]], pen: float) -> Pixels:
    """Draw curves ``(points, 2)``; the pen's width is a share of the longer side."""
    low, high = np.concatenate(curves).min(0), np.concatenate(curves).max(0)
    scale, margin = SIZE / max(high - low), SIZE * pen / 2 + 2
    canvas = np.zeros(np.ceil((high - low) * scale + 2 * margin).astype(int)[::-1], np.uint8)
    points = [(((curve - low) * scale + margin) * 16).astype(np.int32) for curve in curves]
    return tight(
        cv2.polylines(canvas, points, False, 255, max(1, round(pen * SIZE)), cv2.LINE_AA, 4)
    )


def overlaid(one: Pixels, other: Pixels, x: float, y: float) -> Pixels:
    """Return two marks in one, the other at ``(x, y)`` of the first."""
    starts = np.array([(0, 0), (int(y), int(x))]) - np.minimum((int(y), int(x)), 0)
    layers = np.zeros((2, *np.add(starts, (one.shape, other.shape)).max(0)), np.uint8)
    for layer, mark, (top, left) in zip(layers, (one, other), starts, strict=True):
        layer[top : top + mark.shape[0], left : left + mark.shape[1]] = mark
    return layers.max(0)


def beside(left: Pixels, right: Pixels, gap: float, y: float = 0) -> Pixels:
    """Return two marks side by side.

    The gap is that of their ink, in the row where they are nearest.
    """
    top = int((len(left) - len(right)) / 2 + y)
    bottom = max(0, top, min(len(left), top + len(right)))
    a, b = left[max(0, top) : bottom] > EDGE, right[max(0, -top) : bottom - top] > EDGE
    both = a.any(1) & b.any(1)
    reach = (a.shape[1] - a[both, ::-1].argmax(1) - b[both].argmax(1)).max(initial=0)
    return overlaid(left, right, (reach or left.shape[1]) + gap, top)


def glyphs(text: str, unseen: bool) -> list[tuple[Pixels, int]]:
    """Return the characters of matplotlib's fonts, with their classes."""
    drawings, folder = [], Path(matplotlib.get_data_path()) / "fonts/ttf"
    for file in sorted(
        file
        for pattern in FONTS
        for file in folder.glob(pattern)
        if ("Serif" in file.name) == unseen
    ):
        for char in text:
            image = Image.new("L", (2 * SIZE, 2 * SIZE))
            ImageDraw.Draw(image).text(
                (SIZE // 2, SIZE // 3), char, 255, ImageFont.truetype(file, SIZE)
            )
            drawings.append((tight(np.asarray(image)), int(char) if char.isdigit() else NO_DIGIT))
    return drawings


class Maker:
    """Makes marks from digits; those without a label are no digits."""

    def __init__(
        self,
        images: Pixels,
        labels: Ints,
        strangers: list[tuple[Pixels, Ints]],
        uci: slice,
        unseen: bool,
        seed: int,
    ) -> None:
        self.strangers = strangers or [(images, labels)]
        self.rng, digits = np.random.default_rng(seed), load_digits()
        small = [
            cv2.resize(image * 16, (20, 20), interpolation=cv2.INTER_CUBIC)
            for image in digits.images[uci]
        ]
        small = np.pad(np.clip(small, 0, 255).astype(np.uint8), ((0, 0), (4, 4), (4, 4)))
        self.mnist, self.uci = (
            partial(self.hand, images, labels),
            partial(self.hand, small, digits.target[uci]),
        )
        self.letter, self.printed = (
            partial(self.glyph, glyphs(text, unseen)) for text in (LETTERS, "0123456789")
        )
        self.plain = partial(self.hand, images, labels, plain=True)
        self.ruled, self.underlined = partial(self.lined, False), partial(self.lined, True)
        self.touching, self.neighbour = partial(self.near, False), partial(self.near, True)
        self.pool = [
            self.mnist() if self.rng.random() < 0.7 else self.stroke(0.05, 0.15)
            for _ in range(POOL)
        ]

    def warped(self, mark: Pixels, scale: float = 1, bend: float = 0.01) -> Pixels:
        """Turn, slant, stretch and bend a mark."""
        turn, old = np.radians(self.rng.normal(0, 6)), np.array(mark.shape[::-1])
        matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = matrix @ [[self.rng.uniform(0.75, 1.2), self.rng.normal(0, 0.12)], [0, 1]]
        new = np.ceil(np.abs(matrix) @ old * (1 + 4 * bend)).astype(int)
        grid = np.stack(np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in new)), 2).astype(
            np.float32
        )
        bends = cv2.resize(
            self.rng.normal(0, bend * max(old), (4, 4, 2)), new, interpolation=cv2.INTER_CUBIC
        )
        places = cv2.transform(grid, np.linalg.inv(matrix)) + bends + (old - 1) / 2
        return cv2.remap(mark, places.astype(np.float32), None, cv2.INTER_LINEAR)

    def hand(self, images: Pixels, labels: Ints, plain: bool = False) -> tuple[Pixels, int]:
        """Return a deformed image, or one as it is."""
        row, kernel = self.rng.integers(len(images)), np.ones(self.rng.integers(1, 5, 2), np.uint8)
        if plain:
            return images[row], labels[row]
        mark = cv2.morphologyEx(
            self.warped(images[row], SIZE / 20, 0.02), int(self.rng.integers(2)), kernel
        )
        return tight(mark), labels[row]

    def stranger(self) -> tuple[Pixels, int]:
        """Return a digit of somebody who did not write MNIST, deformed."""
        images, labels = self.strangers[self.rng.integers(len(self.strangers))]
        return self.hand(images, labels)

    def crop(self) -> tuple[Pixels, int]:
        """Return such a digit as it is, cropped to its box."""
        images, labels = self.strangers[self.rng.integers(len(self.strangers))]
        row = self.rng.integers(len(images))
        return images[row], labels[row]

    def squeezed(self) -> tuple[Pixels, int]:
        """Return a digit stretched to some box, as in collections of small crops."""
        mark, label = self.digit()
        if is_bar(mark):
            return self.squeezed()
        width = max(3, round(SIZE * self.rng.uniform(0.6, 1.15)))
        return cv2.resize(mark, (width, SIZE)), label

    def bracket(self) -> tuple[Pixels, int]:
        """Return an arc, an angle or a square bracket, deeper than a 1 is bent."""
        depth, t = self.rng.uniform(0.14, 0.45), np.linspace(-1, 1, 21)
        bends = t**2, np.abs(t), (np.abs(t) > 0.97).astype(float)
        x = depth * bends[self.rng.choice(3, p=[0.6, 0.15, 0.25])] * self.rng.choice([-1, 1])
        curve = np.stack([x + self.rng.normal(0, 0.08) * t, t / 2], axis=1).astype(np.float32)
        return drawn([curve], self.pen(0.015, 0.1)), NO_DIGIT

    def row(self) -> tuple[Pixels, int]:
        """Return several digits in one or two rows."""
        rows = []
        for _ in range(self.rng.integers(1, 3)):
            line = self.digit()[0]
            for _ in range(self.rng.integers(1, 5)):
                line = beside(
                    line,
                    self.digit(self.rng.uniform(0.8, 1.1))[0],
                    SIZE * self.rng.uniform(0.1, 0.6),
                )
            rows.append(line)
        if len(rows) == 1:
            return rows[0], NO_DIGIT
        return overlaid(rows[0], rows[1], 0, len(rows[0]) * self.rng.uniform(1.1, 1.5)), NO_DIGIT

    def pen(self, low: float = 0.015, high: float = 0.2) -> float:
        """Return the width of a pen; all scales are as frequent."""
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def stroke(self, *pen: float) -> tuple[Pixels, int]:
        """Return a digit drawn with round strokes."""
        digit = int(self.rng.integers(10))
        return drawn(shape(digit, self.rng), self.pen(*pen or (0.015, 0.3))), digit

    def comma(self) -> tuple[Pixels, int]:
        """Return a digit with a comma that touches its foot."""
        mark, label = self.digit()
        end = self.rng.uniform((-0.3, 0.2), (0.05, 0.45))
        comma = drawn([np.array([(0.0, 0.0), end], np.float32)], self.pen(0.1, 0.3))
        size = max(3, round(SIZE * float(self.rng.uniform(0.15, 0.35))))
        comma = cv2.resize(comma, (max(2, round(comma.shape[1] * size / len(comma))), size))
        return beside(
            mark, comma, self.rng.uniform(-4, 1), SIZE * self.rng.uniform(0.4, 0.6)
        ), label

    def glyph(self, glyphs: list[tuple[Pixels, int]]) -> tuple[Pixels, int]:
        """Return a printed character."""
        mark, label = glyphs[self.rng.integers(len(glyphs))]
        return tight(self.warped(mark)), label

    def digit(self, zoom: float = 1) -> tuple[Pixels, int]:
        """Return a digit of any hand, as high as others."""
        mark, label = self.pool[self.rng.integers(POOL)]
        return cv2.resize(
            mark, (max(3, round(mark.shape[1] * SIZE * zoom / len(mark))), round(SIZE * zoom))
        ), label

    def broken(self) -> tuple[Pixels, int]:
        """Return a digit with a gap in a stroke, or a narrower one through all of it."""
        mark, label = self.digit()
        axes = (
            (300, self.rng.integers(1, 3))
            if self.rng.random() < 0.4
            else (14, self.rng.integers(2, 5))
        )
        place = self.rng.choice(np.argwhere(mark > EDGE))[::-1].tolist()
        return cv2.ellipse(mark, place, axes, self.rng.uniform(0, 180), 0, 360, 0, -1), label

    def clipped(self) -> tuple[Pixels, int]:
        """Return a digit without the tip at one side."""
        (mark, label), turns = self.digit(), self.rng.integers(4)
        return np.rot90(np.rot90(mark, turns)[self.rng.integers(2, 8) :], -turns).copy(), label

    def lined(self, long: bool) -> tuple[Pixels, int]:
        """Return a digit with the rest of a ruled line, or on a long line, which is no digit."""
        mark, label = self.digit()
        width, low = mark.shape[1], 0.9 if long or label in (1, 7) else 0.15
        length = int(
            max(width, SIZE / 2) * self.rng.uniform(1.7, 4)
            if long
            else width + self.rng.uniform(4, 16)
        )
        line = np.full(
            (self.rng.integers(3, 7) if long else self.rng.integers(1, 3), length), 255, np.uint8
        )
        y = SIZE * self.rng.uniform(low, 1.1 if long else 1)
        return overlaid(
            mark, line, -self.rng.uniform(0, length - width), y
        ), NO_DIGIT if long else label

    def sign(self) -> tuple[Pixels, int]:
        """Return a letter, a sign or a piece of a grid."""
        return drawn(shape(SIGN, self.rng), self.pen(0.025, 0.16)), NO_DIGIT

    def piece(self) -> tuple[Pixels, int]:
        """Return what a straight line leaves of a digit.

        Loops are like a 0, and a 1 or 7 leaves bars.
        """
        mark, label = self.digit()
        turn = np.pi * self.rng.choice([0, 0.5, 1, 1.5, self.rng.uniform(0, 2)])
        x, y = np.meshgrid(*(np.arange(side) for side in mark.shape[::-1]))
        along = x * np.cos(turn) + y * np.sin(turn)
        mark = tight(mark * (along < np.quantile(along[mark > EDGE], self.rng.uniform(0.3, 0.5))))
        loops = cv2.connectedComponents(np.pad(255 - mark, 1, constant_values=255) // 128)[0] > 2
        return self.piece() if label in (1, 7) or loops else (mark, NO_DIGIT)

    def near(self, cut: bool) -> tuple[Pixels, int]:
        """Return digits that overlap, touch or stand close together.

        Or one with the nearer part of the next.
        """
        mark, label = self.digit()
        for _ in range(1 if cut or self.rng.random() < 0.75 else 2):
            other, label_2 = self.digit(self.rng.uniform(0.8, 1.2))
            if cut and 1 in (label, label_2):
                return self.near(cut)
            gap = SIZE * self.rng.choice(
                [self.rng.uniform(-0.06, 0.02), self.rng.uniform(0, 0.12 if cut else 0.3)]
            )
            width = int(other.shape[1] * (self.rng.uniform(0.45, 0.75) if cut else 1))
            pair = (
                (mark, other[:, :width]) if self.rng.random() < 0.5 else (other[:, -width:], mark)
            )
            mark = beside(*pair, gap, SIZE * self.rng.normal(0, 0.08))
        return mark, NO_DIGIT

    def framed(self) -> tuple[Pixels, int]:
        """Return a digit in a frame or a ring."""
        frame = drawn(shape(FRAME, self.rng), self.pen(0.02, 0.06))
        frame = cv2.resize(frame, None, fx=self.rng.uniform(1, 2.5), fy=1)
        mark = self.digit(self.rng.uniform(0.4, 0.85))[0]
        return overlaid(frame, mark, *(np.subtract(frame.shape, mark.shape)[::-1] / 2)), NO_DIGIT

    def scribble(self) -> tuple[Pixels, int]:
        """Return a spiral, a zigzag or a random curve."""
        points, turns = (
            self.rng.random((self.rng.integers(7, 14), 2)),
            np.linspace(0, self.rng.uniform(12, 25), 90),
        )
        zigzag = 0.1 * points + np.stack(
            [np.linspace(0, 1, len(points)), np.arange(len(points)) % 2], 1
        )
        zigzag = (zigzag * (1, self.rng.uniform(0.3, 1)))[:, :: self.rng.choice([1, -1])]
        spiral = (
            np.stack([np.cos(turns), np.sin(turns)], 1)
            * np.linspace(self.rng.uniform(0.05, 0.3), 1, 90)[:, None]
        )
        curves = spiral, smooth(zigzag), zigzag, smooth(points)
        return drawn([curves[self.rng.integers(4)]], self.pen(0.015, 0.12)), NO_DIGIT

    def blot(self) -> tuple[Pixels, int]:
        """Return a filled polygon, also a rectangle or an ellipse."""
        turns = np.linspace(
            0, 2 * np.pi, self.rng.choice([4, 4, 7, 11, 40]), endpoint=False
        ) + self.rng.uniform(0, 6)
        radii = self.rng.uniform(self.rng.uniform(0.5, 1), 1, len(turns)) * self.rng.uniform(
            [[16], [10]], [[40], [35]]
        )
        points = 45 + np.stack([np.cos(turns), np.sin(turns)]) * radii
        return cv2.fillPoly(
            np.zeros((90, 90), np.uint8), [points.T.astype(np.int32)], 255, cv2.LINE_AA
        ), NO_DIGIT

    def texture(self) -> tuple[Pixels, int]:
        """Return thresholded noise, the edges of shadows, or both."""
        noise = self.rng.normal(0, 1, self.rng.integers(30, 80, 2))
        noise = (
            cv2.GaussianBlur(noise, (0, 0), *self.rng.uniform(0.5, 6, 2))
            * self.rng.choice([0, 0.3, 1])
            * 5
        )
        x, y = np.meshgrid(*(np.linspace(-1, 1, side) for side in noise.shape[::-1]))
        ramps = [x * np.cos(turn) + y * np.sin(turn) for turn in self.rng.uniform(0, 7, 2)]
        field = noise + np.minimum(*ramps) * self.rng.choice([0, 1, 3]) + self.rng.uniform(-1, 0.3)
        return (field * self.pen(30, 900)).clip(0, 255).astype(np.uint8), NO_DIGIT

    def finished(self, mark: Pixels) -> Pixels:
        """Return the mark as the reader prepares it, out of a picture of some size.

        Sharpness and contrast.
        """
        zoom, blur = (
            min(1, self.rng.uniform(*self.rng.choice([(10, 20), (18, 60)])) / max(mark.shape)),
            self.rng.uniform(0.005, 0.02) * max(mark.shape),
        )
        if self.rng.random() < 0.4:
            size = [max(1, round(side * zoom)) for side in mark.shape[::-1]]
            mark = cv2.resize(mark, size, interpolation=cv2.INTER_AREA)
            if self.rng.random() < 0.4:
                mark = cv2.threshold(mark, self.rng.uniform(60, 150), 255, cv2.THRESH_BINARY)[1]
        if mark.max() < 2 * EDGE:
            return np.zeros((28, 28), np.uint8)
        if self.rng.random() < 0.3:
            mark = cv2.GaussianBlur(np.pad(mark, 4), (0, 0), blur)
        return prepared(
            tight(cv2.convertScaleAbs(mark, alpha=255 / mark.max() * self.rng.uniform(0.85, 1.4)))
        )

    def made(self, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """Make marks of all kinds: images, classes and kinds."""
        kinds = [kind for kind, share in KINDS.items() for _ in range(round(share * count / 100))]
        images, labels = [], []
        for kind in kinds:
            mark, label = getattr(self, kind)()
            while (
                mark.size == 0
                or mark.max() < 2 * EDGE
                or (label == NO_DIGIT and kind != "bracket" and is_bar(mark))
            ):
                mark, label = getattr(self, kind)()
            if kind == "plain":
                images.append(mark)
            else:
                images.append(prepared(mark) if kind == "crop" else self.finished(mark))
            labels.append(label)
        return torch.from_numpy(np.stack(images))[:, None], torch.tensor(labels), kinds


def trained(images: Tensor, labels: Tensor, epochs: int) -> nn.Sequential:
    """Train the network; after a third of the epochs, forget what is a digit.

    Though meant to be none.
    """
    layers, rows = [], torch.arange(len(images))
    for before, after, side, stride in (
        (1, 16, 5, 2),
        (16, 32, 3, 2),
        (32, 64, 3, 2),
        (64, 64, 3, 1),
    ):
        layers += [
            nn.Conv2d(before, after, side, stride, side // 2),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    layers += [nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 16, 64), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(64, CLASSES))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 6e-3, epochs * (len(rows) // BATCH + 1), pct_start=0.2
    )
    for epoch in range(epochs):
        if epoch == epochs // 3:
            with torch.no_grad():
                none = torch.cat(
                    [
                        net.eval()(part.float() / 255).softmax(1)[:, NO_DIGIT]
                        for part in images.split(BATCH)
                    ]
                )
            rows = torch.where((labels != NO_DIGIT) | (none > CLEAN))[0]
            net.train()
        for batch in rows[torch.randperm(len(rows))].split(BATCH):
            loss = cross_entropy(
                net(images[batch].float() / 255), labels[batch], label_smoothing=0.02
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {len(rows):,} marks: loss {loss.item():.4f}", flush=True)
    return net.eval()


@torch.no_grad()
def calibrated(net: nn.Sequential, images: Tensor, labels: Tensor) -> nn.Sequential:
    """Put the scale of grey, the best temperature and the prior into the weights.

    And return probabilities.
    """
    net[0].weight /= 255
    logits = net(images.float())
    factor = min(
        np.geomspace(0.5, 3, 50), key=lambda each: cross_entropy(logits * each, labels).item()
    )
    net[-1].weight *= factor
    net[-1].bias *= factor
    net[-1].bias[NO_DIGIT] -= PRIOR
    return nn.Sequential(*net, nn.Softmax(1))


def main() -> None:
    """Make marks, train, print the table and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="the folder with MNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--strangers", nargs="*", type=Path, default=[], metavar="NPZ")
    parser.add_argument(
        "--output", type=Path, default=Path(detector.__file__).with_suffix(".onnx"), metavar="FILE"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    images, labels = MNIST(args.data_dir).load("train")
    held = np.arange(len(images)) % 10 == 9
    seen, unseen = [], []
    for file in args.strangers:
        crops = np.load(file)
        images_of, labels_of = crops["images"], crops["labels"].astype(np.int64)
        if images_of.max() == 1:  # binary
            images_of = images_of * 255
        rows = np.arange(len(labels_of)) % 10 == 9
        seen.append((images_of[~rows].astype(np.uint8), labels_of[~rows]))
        unseen.append((images_of[rows].astype(np.uint8), labels_of[rows]))
    maker = Maker(images[~held], labels[~held], seen, slice(None, -297), False, args.seed)
    val_images, val_labels, kinds = Maker(
        images[held], labels[held], unseen, slice(-297, None), True, args.seed + 1
    ).made(VAL)
    net = calibrated(trained(*maker.made(TRAIN)[:2], args.epochs), val_images, val_labels)
    with torch.no_grad():
        answers = net(val_images.float())
    print("| kind | marks | right | no digit | mean cost |\n|---|---|---|---|---|")
    for kind in KINDS:
        own = [row for row, each in enumerate(kinds) if each == kind]
        right = (answers[own].argmax(1) == val_labels[own]).float().mean()
        none, costs = (
            (answers[own, NO_DIGIT] > 0.5).float().mean(),
            -answers[own, val_labels[own]].log(),
        )
        print(f"| {kind} | {len(own):,} | {right:.1%} | {none:.1%} | {costs.mean():.3f} |")
    options = {
        "input_names": ["images"],
        "output_names": ["probabilities"],
        "opset_version": 13,
        "dynamo": False,
    }
    axes = {"images": {0: "n"}, "probabilities": {0: "n"}}
    torch.onnx.export(net, (torch.zeros(1, 1, 28, 28),), args.output, dynamic_axes=axes, **options)


if __name__ == "__main__":
    main()
