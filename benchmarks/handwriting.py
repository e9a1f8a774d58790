"""Measure how well trained networks read strangers' digits.

Pictures drawn by program, and scikit-learn's digits.

    python benchmarks/handwriting.py RUN [RUN ...] [--pictures 100] [--seed 0] [--save DIR]

A RUN is a run folder, or a folder with runs, as `load_run` takes it. MNIST's test set is not used.
Strokes are bent, slanted and turned at random, and drawn in the ways in which people make
pictures; the digits of scikit-learn (8x8) are enlarged and framed. A digit is
right if exactly one digit was found at its place, and the right one. The table gives these shares;
"found" is the share of places where exactly one digit was found, the most that any network could
reach.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from mnist_lightning import load_run, recognize

sys.path.append(str(Path(__file__).parent.parent / "tools/detector"))
from strokes import Floats, shape

FINE = 4  # pixels are drawn as 4x4, and then reduced
ROW = "row of five"
SAVED = 10  # pictures of each kind, one for each digit

Pixels = NDArray[np.uint8]


class Kind(NamedTuple):
    """Pictures of one kind. Each is a row of places of the same width, with one digit in each."""

    name: str
    pictures: list[Pixels]
    answers: NDArray[np.int64]  # (N, places)


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
            points = (
                (curve - low + corner + (place * side, 0)) * FINE * 16
            )  # 4 bits of a pixel's fractions
            cv2.polylines(
                canvas,
                [points.round().astype(np.int32)],
                False,
                255,
                round(pen * FINE),
                cv2.LINE_AA,
                4,
            )
    return cv2.resize(
        canvas, None, fx=1 / FINE, fy=1 / FINE, interpolation=cv2.INTER_AREA
    ) / np.float32(255)


def written(
    digits: Sequence[int], rng: Generator, pen: tuple[float, float] = (0.06, 0.1)
) -> Floats:
    """Return a page's ink: 200 to 400 pixels.

    The pen's width given as a share of the digit's height.
    """
    side = int(rng.integers(200, 401))
    height = side * rng.uniform(0.4, 0.7)
    return write(digits, side, height, height * rng.uniform(*pen), rng)


def coloured(ink: Floats, paper: float | Floats, pen: float | Floats) -> Pixels:
    """Return the picture of a pen's grey or colour on paper."""
    return (paper + ink * (pen - paper)).round().clip(0, 255).astype(np.uint8)


def jpeg(picture: Floats, quality: float) -> Pixels:
    """Return the picture after a JPEG compression.

    That OpenCV takes RGB for BGR makes no difference.
    """
    file = cv2.imencode(
        ".jpg", picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, round(quality)]
    )[1]
    return np.asarray(cv2.imdecode(file, cv2.IMREAD_UNCHANGED))


def ramp(ink: Floats, rng: Generator) -> Floats:
    """Return the distance of each pixel of a square from a line through its centre.

    -1 to 1 or a little more.
    """
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
    return coloured(
        written(digits, rng)[..., None], rng.uniform(150, 255, 3), rng.uniform(0, 120, 3)
    )


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
    shadow = 1 - rng.uniform(0.15, 0.4) / (
        1 + np.exp(-(ramp(ink, rng) - rng.uniform(-0.5, 0.5)) * 25)
    )
    light = shadow * (1 + 0.1 * ramp(ink, rng))
    grey = cv2.GaussianBlur(
        (225 + fibres + ink * (45 - 225)) * light, (0, 0), rng.uniform(0.6, 1.8)
    )
    colour = grey[..., None] * rng.uniform([0.95, 0.9, 0.8], [1, 1, 0.95]) + rng.normal(
        0, 3, (*ink.shape, 3)
    )
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


def enlarge(image: Pixels) -> Pixels:
    """Return the image at 128x128."""
    return np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BICUBIC))


def uci() -> list[Kind]:
    """Return scikit-learn's 1,797 digits in four framings."""
    digits = load_digits()
    plain = np.stack(
        [enlarge((image * (255 / 16)).round().astype(np.uint8)) for image in digits.images]
    )
    framings = {
        "UCI": plain,
        "UCI, negative": 255 - plain,
        "UCI, upper left corner": np.pad(plain, ((0, 0), (0, 128), (0, 128))),
        "UCI, lower right corner, negative": 255 - np.pad(plain, ((0, 0), (128, 0), (128, 0))),
    }
    return [Kind(name, list(images), digits.target[:, None]) for name, images in framings.items()]


def read(net: nn.Module, kind: Kind) -> NDArray[np.int64]:
    """Return the digit read at each place ``(N, places)``.

    Or -1 where none or several were found.
    """
    read = np.full(kind.answers.shape, -1)
    places = kind.answers.shape[1]
    for index, (picture, found) in enumerate(
        zip(kind.pictures, recognize(kind.pictures, net), strict=True)
    ):
        at = [int((digit.box[0] + digit.box[2]) / 2 * places / picture.shape[1]) for digit in found]
        for place, digit in zip(at, found, strict=True):
            if at.count(place) == 1:
                read[index, place] = digit.digit
    return read


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run folder, or a folder with runs"
    )
    parser.add_argument("--pictures", type=int, default=100, help="to draw of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures")
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help=f"write {SAVED} pictures of each kind as PNG"
    )
    args = parser.parse_args()
    nets = [load_run(run).model.net for run in args.runs]
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)

    print(f"| | digits | found | {' | '.join(args.runs)} |")
    print("|---" * (3 + len(nets)) + "|")
    for title, kinds in (
        ("drawn", [drawn(name, args.pictures, args.seed) for name in DRAWN]),
        ("UCI", uci()),
    ):
        shares = []
        for kind in kinds:
            for index in range(min(SAVED, len(kind.pictures)) if args.save else 0):
                name = f"{kind.name}, {index} is {''.join(map(str, kind.answers[index]))}.png"
                Image.fromarray(kind.pictures[index]).save(args.save / name)
            answers = [read(net, kind) for net in nets]
            shares.append(
                [np.mean(answers[0] >= 0), *(np.mean(each == kind.answers) for each in answers)]
            )
            print(
                f"| {kind.name} | {kind.answers.size:,} | "
                f"{' | '.join(f'{share:.1%}' for share in shares[-1])} |"
            )
        means = " | ".join(f"**{share:.1%}**" for share in np.mean(shares, axis=0))
        print(
            f"| **{title}, mean** | {sum(kind.answers.size for kind in kinds):,} | {means} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
