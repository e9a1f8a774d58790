"""Measure how well trained networks read strangers' digits: pictures drawn by program, and scikit-learn's digits.

    python benchmarks/handwriting.py RUN [RUN ...] [--pictures 100] [--seed 0] [--save DIR]

A RUN is a run folder, or a folder with runs, as `load_run` takes it. MNIST's test set is not used. The strokes below
are bent, slanted and turned at random, and drawn in the ways in which people make pictures; the digits of scikit-learn
(8x8) are enlarged and framed as in `pictures.py`. A digit is right if exactly one digit was found at its place, and the
right one. The table gives these shares; "found" is the share of places where exactly one digit was found, the most that
any network could reach.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pictures import enlarge
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from mnist_lightning import load_run, recognize

# Ways to write the digits. A stroke is a smooth curve through points x,y of a square of 100 units, y downwards.
# "/" is a corner, and "|" lifts the pen.
SHAPES = [
    (0, "22,14 14,50 24,88 50,100 76,88 86,50 78,14 50,0 22,14"),
    (0, "35,14 29,50 35,86 50,100 65,86 71,50 65,14 52,0 35,14"),
    (0, "64,8 40,2 14,22 8,52 20,86 50,99 82,84 92,48 80,14 54,2 40,6"),
    (1, "50,0/50,100"),
    (1, "30,22/52,0/52,100"),
    (1, "32,20/50,0/50,100|28,100/74,100"),
    (1, "56,0 52,50 50,100"),
    (2, "18,24 30,6 52,0 76,10 79,32 62,58 14,100/86,100"),
    (2, "18,22 34,4 56,0 76,12 76,36 58,66 34,92 16,96 16,84 32,82 52,92 70,99 90,92"),
    (2, "16,14 46,0 74,12 68,44 42,72 12,98/88,94"),
    (3, "20,14 46,0 74,10 74,34 44,47/76,56 82,80 54,100 16,88"),
    (3, "18,2/80,0/46,40/74,46 84,70 62,98 16,92"),
    (3, "22,12 48,0 72,14 66,38 40,46 66,52 82,72 68,96 42,100 16,88"),
    (4, "24,0/14,62/88,62|66,22/64,100"),
    (4, "62,100/62,0/10,68/90,68"),
    (4, "58,0/10,64/90,62|64,34/62,100"),
    (4, "18,0 12,40 26,54/82,50|80,4/74,100"),
    (5, "78,0/28,0/24,44/52,36 80,50 82,78 54,100 16,90"),
    (5, "28,4/24,46/52,38 80,52 80,80 52,100 16,90|28,4/84,0"),
    (5, "26,12/24,46/54,40 80,56 78,84 50,100 16,92|38,2/86,-2"),
    (5, "80,2 50,2 28,14 32,40 64,50 80,68 68,94 42,100 16,90"),
    (6, "66,0 36,26 20,64 28,92 54,100 78,84 74,60 50,54 28,66 22,80"),
    (6, "74,12 58,0 38,12 22,48 24,84 50,100 76,86 74,62 50,54 26,72"),
    (6, "60,0/22,64 24,90 50,100 74,90 76,68 54,58 24,72"),
    (7, "14,4/84,2/44,100"),
    (7, "14,2/84,0/42,100|34,52/80,48"),
    (7, "16,18/18,2/84,2/62,40 48,100"),
    (8, "76,14 50,0 26,14 34,38 66,56 76,80 50,100 24,80 34,56 66,38 76,14"),
    (8, "50,0 28,10 28,36 50,46 72,36 72,10 50,0|50,46 24,60 22,86 50,100 78,86 76,60 50,46"),
    (8, "74,10 48,0 28,14 36,40 68,60 74,84 50,100 26,84 32,60 62,42 78,16"),
    (9, "76,12 50,0 24,16 24,42 48,52 70,36 77,4/75,100"),
    (9, "76,14 50,0 24,16 26,44 52,52 72,36 77,10/78,62 66,92 42,100 22,88"),
    (9, "72,14 50,0 26,14 26,40 50,48 70,28 73,8/54,100"),
]
FINE = 4  # pixels are drawn as 4x4, and then reduced
ROW = "row of five"
SAVED = 10  # pictures of each kind, one for each digit

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Kind(NamedTuple):
    """Pictures of one kind. Each is a row of places of the same width, with one digit in each."""

    name: str
    pictures: list[Pixels]
    answers: NDArray[np.int64]  # (N, places)


def shape(digit: int, rng: Generator) -> list[Floats]:
    """Return the curves ``(points, 2)`` of a digit, about one unit high and written by some hand."""
    width, slant, bend = rng.uniform(0.6, 1.1), rng.uniform(-0.2, 0.3), rng.uniform(0.75, 1.3)
    hand = cv2.getRotationMatrix2D((0, 0), rng.uniform(-8, 8), 1)[:, :2] @ [[width, -slant], [0, 1]]
    curves = []
    for stroke in str(rng.choice([strokes for each, strokes in SHAPES if each == digit])).split("|"):
        end = np.empty((0, 2))
        for piece in stroke.split("/"):
            points = np.array([point.split(",") for point in piece.split()], float) / 100
            points[:, 1] = points[:, 1].clip(0) ** bend  # a larger or smaller upper half
            points = np.concatenate([end, (points + rng.normal(0, 0.02, points.shape)) @ hand.T])
            end = points[-1:]
            if len(points) > 1:
                curves.append(smooth(points))
    return curves


def smooth(points: NDArray[np.float64]) -> Floats:
    """Return a Catmull-Rom curve through points: its tangent at each is half the difference of the neighbours."""
    tangents = np.gradient(points, axis=0)
    t = np.linspace(0, 1, 16)[:, None]
    parts = [
        (1 + 2 * t) * (1 - t) ** 2 * a + t * (1 - t) ** 2 * u + t * t * (3 - 2 * t) * b + t * t * (t - 1) * v
        for a, b, u, v in zip(points, points[1:], tangents, tangents[1:], strict=False)
    ]
    return np.concatenate(parts).astype(np.float32)


def write(digits: Sequence[int], side: int, height: float, pen: float, rng: Generator) -> Floats:
    """Return the share of each pixel that the ink covers ``(side, side * digits)``.

    Args:
        digits: One for each place.
        side: Of a place, in pixels.
        height: Of a digit, in pixels.
        pen: Its width in pixels.
        rng: The random source of shapes and positions.
    """
    canvas = np.zeros((side * FINE, side * len(digits) * FINE), np.uint8)
    for place, digit in enumerate(digits):
        curves = [curve * height for curve in shape(digit, rng)]
        low, high = np.concatenate(curves).min(0), np.concatenate(curves).max(0)
        margin = pen / 2 + max(1, side / 20)
        corner = rng.uniform(margin, np.maximum(side - margin - (high - low), margin))
        for curve in curves:
            points = (curve - low + corner + (place * side, 0)) * FINE * 16  # 4 bits of a pixel's fractions
            cv2.polylines(canvas, [points.round().astype(np.int32)], False, 255, round(pen * FINE), cv2.LINE_AA, 4)
    return cv2.resize(canvas, None, fx=1 / FINE, fy=1 / FINE, interpolation=cv2.INTER_AREA) / np.float32(255)


def written(digits: Sequence[int], rng: Generator, pen: tuple[float, float] = (0.06, 0.1)) -> Floats:
    """Return a page's ink: 200 to 400 pixels, the pen's width given as a share of the digit's height."""
    side = int(rng.integers(200, 401))
    height = side * rng.uniform(0.4, 0.7)
    return write(digits, side, height, height * rng.uniform(*pen), rng)


def coloured(ink: Floats, paper: float | Floats, pen: float | Floats) -> Pixels:
    """Return the picture of a pen's grey or colour on paper."""
    return (paper + ink * (pen - paper)).round().clip(0, 255).astype(np.uint8)


def jpeg(picture: Floats, quality: float) -> Pixels:
    """Return the picture after a JPEG compression; that OpenCV takes RGB for BGR makes no difference."""
    file = cv2.imencode(".jpg", picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, round(quality)])[1]
    return np.asarray(cv2.imdecode(file, cv2.IMREAD_UNCHANGED))


def ramp(ink: Floats, rng: Generator) -> Floats:
    """Return the distance of each pixel of a square from a line through its centre, -1 to 1 or a little more."""
    x, angle = np.linspace(-1, 1, len(ink), dtype=np.float32), rng.uniform(0, 2 * np.pi)
    return x * np.float32(np.cos(angle)) + x[:, None] * np.float32(np.sin(angle))


def tiny(digits: Sequence[int], rng: Generator, pen: int, paper: int) -> Pixels:
    return coloured(write(digits, 28, rng.uniform(17, 22), pen, rng), paper, 255 - paper)


def page(digits: Sequence[int], rng: Generator, pen: tuple[float, float]) -> Pixels:
    return coloured(written(digits, rng, pen), 255, rng.uniform(0, 40))


def pencil(digits: Sequence[int], rng: Generator) -> Pixels:
    ink = written(digits, rng, (0.03, 0.06))
    paper = rng.uniform(225, 250) + rng.normal(0, 1.5, ink.shape)
    return coloured(ink * rng.uniform(0.6, 1, ink.shape), paper, paper.min() - rng.uniform(50, 80))


def coloured_paper(digits: Sequence[int], rng: Generator) -> Pixels:
    return coloured(written(digits, rng)[..., None], rng.uniform(150, 255, 3), rng.uniform(0, 120, 3))


def transparent(digits: Sequence[int], rng: Generator) -> Pixels:
    """Return RGBA: dark or light ink; what is transparent is black."""
    ink = written(digits, rng)
    colour = rng.uniform(0, 90, 3) + rng.choice([0, 165])
    return np.dstack([coloured(ink[..., None] > 0, 0, colour), coloured(ink, 0, 255)])


def uneven(digits: Sequence[int], rng: Generator) -> Pixels:
    """Return a page lit from one side, with dark corners, noise and a strong compression."""
    ink = written(digits, rng)
    arch = 1 - rng.uniform(0.1, 0.2) * np.linspace(-1, 1, len(ink)) ** 2
    light = (0.7 + 0.25 * ramp(ink, rng)) * arch * arch[:, None]
    return jpeg(coloured(ink, 245, 50) * light + rng.normal(0, 4, ink.shape), rng.uniform(35, 70))


def photograph(digits: Sequence[int], rng: Generator) -> Pixels:
    """Return RGB: textured paper seen at an angle, a shadow's edge, blur, noise and compression."""
    ink = written(digits, rng)
    side = len(ink)
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    seen = corners + rng.uniform(0, 0.12, (4, 2)).astype(np.float32) * (side - 2 * corners)
    ink = cv2.warpPerspective(ink, cv2.getPerspectiveTransform(corners, seen), (side, side))
    fibres = cv2.GaussianBlur(rng.normal(0, 1, ink.shape), (0, 0), 2) * 12
    shadow = 1 - rng.uniform(0.15, 0.4) / (1 + np.exp(-(ramp(ink, rng) - rng.uniform(-0.5, 0.5)) * 25))
    light = shadow * (1 + 0.1 * ramp(ink, rng))
    grey = cv2.GaussianBlur((225 + fibres + ink * (45 - 225)) * light, (0, 0), rng.uniform(0.6, 1.8))
    colour = grey[..., None] * rng.uniform([0.95, 0.9, 0.8], [1, 1, 0.95]) + rng.normal(0, 3, (*ink.shape, 3))
    return jpeg(colour, rng.uniform(50, 90))


DRAWN: dict[str, Callable[[Sequence[int], Generator], Pixels]] = {
    **{
        f"28x28, pen {pen} px, {name}": partial(tiny, pen=pen, paper=paper)
        for name, paper in (("white on black", 0), ("black on white", 255))
        for pen in (1, 2, 3)
    },
    "plain page": partial(page, pen=(0.06, 0.1)),
    "thin pen": partial(page, pen=(0.015, 0.03)),
    "thick pen": partial(page, pen=(0.15, 0.2)),
    "uneven light": uneven,
    "pencil": pencil,
    "coloured paper": coloured_paper,
    "transparent background": transparent,
    "photograph": photograph,
    ROW: partial(page, pen=(0.06, 0.1)),
}


def drawn(name: str, count: int, seed: int) -> Kind:
    """Draw pictures of one kind; they do not depend on the other kinds."""
    rng = np.random.default_rng([seed, *name.encode()])
    places = 5 if name == ROW else 1
    answers = np.array([[index % 10, *rng.integers(10, size=places - 1)] for index in range(count)])
    return Kind(name, [DRAWN[name](digits, rng) for digits in answers.tolist()], answers)


def uci() -> list[Kind]:
    """Return scikit-learn's 1,797 digits in four framings."""
    digits = load_digits()
    plain = np.stack([enlarge((image * (255 / 16)).round().astype(np.uint8)) for image in digits.images])
    framings = {
        "UCI": plain,
        "UCI, negative": 255 - plain,
        "UCI, upper left corner": np.pad(plain, ((0, 0), (0, 128), (0, 128))),
        "UCI, lower right corner, negative": 255 - np.pad(plain, ((0, 0), (128, 0), (128, 0))),
    }
    return [Kind(name, list(images), digits.target[:, None]) for name, images in framings.items()]


def read(net: nn.Module, kind: Kind) -> NDArray[np.int64]:
    """Return the digit read at each place ``(N, places)``, or -1 where none or several were found."""
    read = np.full(kind.answers.shape, -1)
    places = kind.answers.shape[1]
    for index, (picture, found) in enumerate(zip(kind.pictures, recognize(net, kind.pictures), strict=True)):
        at = [int((digit.box[0] + digit.box[2]) / 2 * places / picture.shape[1]) for digit in found]
        for place, digit in zip(at, found, strict=True):
            if at.count(place) == 1:
                read[index, place] = digit.digit
    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a folder with runs")
    parser.add_argument("--pictures", type=int, default=100, help="to draw of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures")
    parser.add_argument("--save", type=Path, metavar="DIR", help=f"write {SAVED} pictures of each kind as PNG")
    args = parser.parse_args()
    nets = [load_run(run).model.net for run in args.runs]
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)

    print(f"| | digits | found | {' | '.join(args.runs)} |")
    print("|---" * (3 + len(nets)) + "|")
    for title, kinds in (("drawn", [drawn(name, args.pictures, args.seed) for name in DRAWN]), ("UCI", uci())):
        shares = []
        for kind in kinds:
            for index in range(min(SAVED, len(kind.pictures)) if args.save else 0):
                name = f"{kind.name}, {index} is {''.join(map(str, kind.answers[index]))}.png"
                Image.fromarray(kind.pictures[index]).save(args.save / name)
            answers = [read(net, kind) for net in nets]
            shares.append([np.mean(answers[0] >= 0), *(np.mean(each == kind.answers) for each in answers)])
            print(f"| {kind.name} | {kind.answers.size:,} | {' | '.join(f'{share:.1%}' for share in shares[-1])} |")
        means = " | ".join(f"**{share:.1%}**" for share in np.mean(shares, axis=0))
        print(f"| **{title}, mean** | {sum(kind.answers.size for kind in kinds):,} | {means} |", flush=True)


if __name__ == "__main__":
    main()
