"""Measure how well a trained network reads pictures of kinds that are easily read wrongly.

A few pictures of each kind, drawn by program, whose digits are known.

    python benchmarks/kinds.py RUN [--pictures 5] [--seed 0] [--kind NAME ...] [--save DIR]

The RUN is a run folder, or a folder with runs, as `load_run` takes it. A picture depends only on
the seed, its kind and its number. The columns:

- right: pictures of which exactly the digits are read, in their order. Doubtful finds count as
  digits, except in the kinds with other signs: there a doubtful find counts for nothing, since
  doubt is the right answer to a plus.
- certain wrong: finds called certain that are not among the picture's digits, or not in order.
- read: for the pictures that are not right, the digits and what was read; `?` marks a doubtful
  find, `/` a new line.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from handwriting import Pixels, coloured
from numpy.random import Generator
from pages import (
    BRACKETS,
    INK,
    LOOPS,
    SIGNS,
    Glyph,
    Mark,
    Page,
    draw,
    edged,
    finished,
    held,
    lit,
    photographed,
    seen,
)
from PIL import Image
from strokes import Floats, shape, smooth

from mnist_lightning import load_run, recognize
from mnist_lightning.pictures.recognize import Reading

Shape = list[Floats]  # the strokes of a sign, about one unit high


class Drawn(NamedTuple):
    """A picture, and the digits on it in reading order."""

    picture: Pixels
    truth: str  # empty: there is no digit


# Drawings are strokes through points, as in `pages.SIGNS`; two strokes that begin and end in the
# same point make a corner.
FOOTED = [
    (1, "20,28 50,0|50,0 48,100|-8,101 104,98"),
    (1, "26,20 48,0|48,0 44,100|0,99 126,100"),
    (1, "12,30 48,0|48,0 30,96|-34,104 112,96"),
    (1, "10,24 40,0|40,0 32,90|-30,100 100,100"),  # the bar is a stroke of its own
    (2, "14,24 30,4 54,0 76,14 74,38 46,70 8,98|8,98 80,97 142,94"),
    (2, "12,20 40,0 70,12 66,42 34,76 2,100|2,100 70,102 128,98"),
    (2, "8,14 50,0|50,0 66,10 60,40 10,100|-40,100 130,100"),
]
ANGULAR = [  # straight strokes from edge to edge
    (2, "0,14 30,0 86,4 90,34 0,100|0,100 100,100"),
    (4, "22,0 0,64|0,64 100,64|80,36 80,100"),
    (4, "46,0 0,70|0,70 100,70|74,10 74,100"),
    (5, "100,0 8,0|8,0 0,44|0,44 70,40 100,66 80,98 0,100"),
    (7, "0,0 78,0|78,0 80,40 28,100|4,58 100,58"),
    (7, "0,0 100,0|100,0 84,46 56,100|40,50 100,50"),
]
BROKEN = {  # each has a gap that a person overlooks
    2: ["12,22 34,2 68,4 80,28 74,42|58,60 36,80 12,99|12,99 90,97"],
    3: ["16,12 44,0 74,8 76,30 46,46|58,58 80,66 80,86 52,100 14,92"],
    4: ["24,0 6,62|6,62 56,60|76,22 68,100", "28,0 10,38|6,58 6,64|6,64 90,62|66,26 66,100"],
    5: ["26,14 22,46|22,46 54,38 82,58 76,90 48,100 12,92|38,0 90,-2"],
    7: ["2,4 76,0|90,14 66,50 44,100", "0,0 88,2|88,2 74,34|64,54 46,100"],
    9: ["76,14 50,0 22,14 22,40 48,50 74,36|78,16 76,50|74,72 72,100"],
}
PENS = np.array([[25, 25, 30], [20, 40, 130], [60, 60, 64], [120, 25, 30]])


# Helpers


def drawing(strokes: str, rng: Generator) -> Shape:
    """Return a drawing's strokes, a little bent."""
    curves = []
    for stroke in strokes.split("|"):
        pairs = [point.split(",") for point in stroke.replace("/", " ").split()]
        points = np.array(pairs, float) / 100
        curves.append(smooth(points + rng.normal(0, 0.012, points.shape)))
    return curves


def digits(count: int, rng: Generator) -> str:
    return "".join(map(str, rng.integers(0, 10, count)))


def hand(text: str, rng: Generator) -> list[Shape]:
    """Return the strokes of each digit."""
    return [shape(int(digit), rng) for digit in text]


def in_row(shapes: Sequence[Shape], gap: float, rng: Generator) -> Shape:
    """Return signs one behind another, with about a gap between them."""
    curves, x = [], 0.0
    for each in shapes:
        points = np.concatenate(each)
        place = np.array([x - points[:, 0].min(), rng.normal(0, 0.02)], np.float32)
        curves += [curve + place for curve in each]
        x += float(np.ptp(points[:, 0])) + gap * rng.uniform(0.85, 1.25)
    return curves


def written(lines: Sequence[Shape], height: float, pen: float, rng: Generator) -> Glyph:
    """Return the ink of lines of writing; a pen's width is a share of the height."""
    curves = []
    for number, line in enumerate(lines):
        place = np.array([rng.uniform(0, 0.6) * (len(lines) > 1), 1.8 * number])
        curves += [((curve + place) * height).astype(np.float32) for curve in line]
    return draw(curves, max(1.0, pen * height))


def framed(ink: Glyph, margin: tuple[float, float], rng: Generator) -> Glyph:
    """Leave paper on all sides, between two shares of the ink's height."""
    return np.pad(ink, (rng.uniform(*margin, (2, 2)) * len(ink)).astype(int))


def on_paper(ink: Glyph, rng: Generator) -> Pixels:
    """Return a scan of ink: a dark pen on light paper."""
    paper = rng.uniform(228, 255) * rng.uniform([0.97, 0.97, 0.92], [1, 1, 1])
    return coloured(ink[..., None], paper, PENS[rng.integers(len(PENS))] + rng.uniform(-15, 25))


def crop(ink: Glyph, rng: Generator, binary: bool = False) -> Pixels:
    """Return ink in grey or in two colours, white on black or black on white."""
    ink = (ink > INK).astype(np.float32) if binary else ink
    ground = int(rng.choice([0, 255]))
    return coloured(ink, ground, 255 - ground)


def on_page(ink: Glyph, paper: float, pen: float, rows: int, columns: int, rng: Generator) -> Page:
    """Return a page in float RGB with the ink somewhere in its inner part, as one mark."""
    free = np.array([rows, columns]) - ink.shape
    top, left = (free * rng.uniform(0.35, 0.65, 2)).astype(int)
    canvas = np.zeros((rows, columns), np.float32)
    canvas[top : top + len(ink), left : left + ink.shape[1]] = ink
    tint = rng.uniform([0.97, 0.96, 0.9], [1, 1, 0.98])
    picture = (paper + canvas[..., None] * (pen - paper)) * tint
    hull = np.array([[left, top], [left + ink.shape[1], top + len(ink)]], np.float32)
    return Page(picture.astype(np.float32), [Mark(-1, 1, 1, hull)])


# Kinds


def flagged(rng: Generator) -> Drawn:
    """Draw ones with a long up-stroke, in a row or alone."""
    count = 1 if rng.random() < 0.3 else int(rng.integers(4, 9))
    low, width, lean = rng.uniform([0.32, 0.3, 0.0], [0.46, 0.44, 0.22])
    flag = np.array([[0, low], [0.5 * width, 0.45 * low], [width, 0]])
    stem = np.array([[width, 0], [width - lean, 1]])
    ones = []
    for _ in range(count):
        bent = [smooth(each + rng.normal(0, 0.015, each.shape)) for each in (flag, stem)]
        ones.append(bent)
    line = in_row(ones, rng.uniform(0.25, 0.5), rng)
    ink = written([line], rng.uniform(50, 140), rng.uniform(0.025, 0.07), rng)
    return Drawn(on_paper(framed(ink, (0.3, 1.2), rng), rng), "1" * count)


def footed(rng: Generator) -> Drawn:
    """Draw a 1 with a base bar, or a 2 on a long foot."""
    digit, strokes = FOOTED[rng.integers(len(FOOTED))]
    height = rng.uniform(16, 90)
    ink = written([drawing(strokes, rng)], height, rng.uniform(0.08, 0.14), rng)
    return Drawn(on_paper(framed(ink, (0.1, 0.8), rng), rng), str(digit))


def broken(rng: Generator) -> Drawn:
    """Draw a digit whose stroke has a gap, as a small crop with hard edges."""
    digit = int(rng.choice(list(BROKEN)))
    ink = written([drawing(rng.choice(BROKEN[digit]), rng)], rng.uniform(20, 34), 0.08, rng)
    return Drawn(crop(np.pad(ink, rng.integers(0, 4, (2, 2))), rng, binary=True), str(digit))


def narrow(rng: Generator) -> Drawn:
    """Draw a zero that is narrow or open, as a small crop, or cut off by a large one."""
    way = rng.choice(["narrow", "open", "open and faint", "cut off"])
    gap = 0 if way in ("narrow", "cut off") else rng.uniform(0.6, 1.1)
    width = rng.uniform(0.15, 0.2) if way == "narrow" else rng.uniform(0.24, 0.34)
    turn = np.linspace(gap / 2, 2 * np.pi - gap / 2, 40)  # from the top
    y = 0.5 - 0.5 * np.cos(turn)
    slant = 0 if way == "cut off" else rng.uniform(0, 0.25)
    oval = np.stack([width * np.sin(turn) - slant * y, y], 1)
    ink = written([[oval.astype(np.float32)]], 220, rng.uniform(0.08, 0.13), rng)
    if way == "cut off":
        lost = int(rng.integers(20, 30))
        return Drawn(crop(ink[lost:-lost], rng), "0")
    if way == "open and faint":
        ink[round(rng.uniform(0.86, 0.92) * len(ink)) :] *= rng.uniform(0.25, 0.6)
    elif rng.random() < 0.5:
        ink = ink[::-1, ::-1]  # open below
    side = int(rng.integers(20, 36))
    size = max(8, side * ink.shape[1] // len(ink)), side
    small = cv2.resize(ink, size, interpolation=cv2.INTER_AREA)
    return Drawn(crop(np.pad(small, rng.integers(1, 5, (2, 2))), rng), "0")


def signs(rng: Generator, strokes: Sequence[str], size: tuple[float, float]) -> Drawn:
    """Draw a row of signs that are no digits."""
    chosen = rng.choice(strokes, int(rng.integers(3, 8)))
    line = in_row([drawing(each, rng) for each in chosen], rng.uniform(0.5, 0.9), rng)
    ink = written([line], rng.uniform(*size), rng.uniform(0.025, 0.06), rng)
    return Drawn(on_paper(framed(ink, (0.5, 1.5), rng), rng), "")


def dark_edge(rng: Generator) -> Drawn:
    """Draw pencil digits on a large grey page, with a dark edge beside it."""
    texts = [digits(int(rng.integers(3, 6)), rng) for _ in range(int(rng.integers(1, 4)))]
    lines = [in_row(hand(text, rng), 0.35, rng) for text in texts]
    ink = written(lines, rng.uniform(120, 190), rng.uniform(0.03, 0.05), rng)
    paper = rng.uniform(160, 205)
    page = on_page(ink, paper, paper - rng.uniform(80, 120), 1600, 1250, rng)
    page = finished(edged(lit(page, rng), rng), rng, rng.uniform(0.6, 1.3), 2.5, 85)
    return Drawn(page.picture, "".join(texts))


def notepad(rng: Generator) -> Drawn:
    """Draw a ruled notepad with numbers in pen, held over a dark striped table."""
    texts = [digits(int(rng.integers(2, 5)), rng) for _ in range(int(rng.integers(2, 5)))]
    lines = [in_row(hand(text, rng), 0.3, rng) for text in texts]
    height = rng.uniform(60, 85)
    ink = written(lines, height, rng.uniform(0.05, 0.08), rng)
    page = on_page(ink, rng.uniform(205, 240), rng.uniform(40, 80), 1150, 800, rng)
    for y in np.arange(0.12 * 1150, 1150, 0.9 * height).astype(int).tolist():
        page.picture[y : y + 2] = np.minimum(page.picture[y : y + 2], rng.uniform(120, 170))
    return Drawn(photographed(held(page, rng), rng).picture, "".join(texts))


def cut(rng: Generator) -> Drawn:
    """Draw a score such as 7,5 in a crop that its digits or its comma touch."""
    text = str(rng.integers(2, 10)) + digits(1, rng)  # two strokes in a crop need not be 11
    first, second = hand(text, rng)
    right = np.concatenate(first)[:, 0].max() + rng.uniform(0.03, 0.12)
    comma = np.array([[right, 0.82], [right + 0.02, 1.0], [right - 0.12, 1.28]])
    score = [*first, smooth(comma)] if rng.random() < 0.7 else first
    ink = written([in_row([score, second], 0.3, rng)], rng.uniform(16, 60), 0.09, rng)
    return Drawn(on_paper(np.pad(ink, [(0, 0), rng.integers(0, 20, 2)]), rng), text)


def operator(rng: Generator) -> Drawn:
    """Draw two numbers with a plus, a minus or a cross close between them."""
    left, right = digits(int(rng.integers(1, 4)), rng), digits(int(rng.integers(1, 4)), rng)
    sign = drawing(SIGNS[int(rng.choice([0, 1, 3]))], rng)
    gap = rng.uniform(0.2, 0.3)
    line = in_row([*hand(left, rng), sign, *hand(right, rng)], gap, rng)
    ink = written([line], rng.uniform(60, 150), rng.uniform(0.03, 0.08), rng)
    return Drawn(on_paper(framed(ink, (0.4, 1.5), rng), rng), left + right)


def tight(rng: Generator) -> Drawn:
    """Draw a digit that goes from edge to edge, as segmenters cut them."""
    digit, strokes = ANGULAR[rng.integers(len(ANGULAR))]
    curves = drawing(strokes, rng)
    if rng.random() < 0.5:
        digit = int(rng.choice([0, *range(2, 10)]))
        curves = shape(digit, rng)
    ink = written([curves], 150, rng.uniform(0.1, 0.16), rng)
    size = [(16, 16), (20, 32), (130, 180)][rng.integers(3)]
    ink = cv2.resize(ink, size, interpolation=cv2.INTER_AREA)
    return Drawn(crop(ink, rng, binary=size == (16, 16)), str(digit))


def upright_rules(rng: Generator) -> Drawn:
    """Draw a line of digits across the lines of ruled paper that was turned by 90 degrees."""
    text = digits(int(rng.integers(4, 8)), rng)
    ink = written([in_row(hand(text, rng), 0.4, rng)], rng.uniform(70, 110), 0.06, rng)
    page = on_page(ink, rng.uniform(200, 235), rng.uniform(40, 90), 800, 1250, rng)
    slant, grey = rng.uniform(-40, 40), rng.uniform(140, 175)
    rules = np.zeros(page.picture.shape[:2], np.uint8)
    for x in np.arange(rng.uniform(20, 90), 1250, rng.uniform(60, 110)):
        cv2.line(rules, (round(x), 0), (round(x + slant), 800), 1, 2)
    page.picture[rules > 0] = np.minimum(page.picture[rules > 0], grey)
    return Drawn(photographed(page, rng).picture, text)


def fat(rng: Generator) -> Drawn:
    """Draw a 0, 6, 8 or 9 with a thick pen that fills its small picture."""
    digit = int(rng.choice([0, 6, 8, 9]))
    while True:  # until its loops are open
        ink = written([shape(digit, rng)], 150, rng.uniform(0.18, 0.34), rng)
        side = int(rng.integers(16, 30))
        small = cv2.resize(ink, (side * 4 // 5, side), interpolation=cv2.INTER_AREA)
        ground = np.pad(small < INK, 1, constant_values=True).astype(np.uint8)
        if cv2.connectedComponents(ground, connectivity=4)[0] - 2 == LOOPS[digit]:
            return Drawn(crop(np.pad(small, rng.integers(0, 3, (2, 2))), rng), str(digit))


def turned(rng: Generator, degrees: Sequence[int]) -> Drawn:
    """Draw a page with several lines of digits that lies on its side or upside down."""
    texts = [digits(int(rng.integers(4, 8)), rng) for _ in range(int(rng.integers(3, 6)))]
    lines = [in_row(hand(text, rng), 0.35, rng) for text in texts]
    ink = written(lines, rng.uniform(50, 90), rng.uniform(0.05, 0.1), rng)
    rows, columns = len(ink) + int(rng.integers(60, 300)), ink.shape[1] + int(rng.integers(60, 300))
    page = on_page(ink, rng.uniform(225, 252), rng.uniform(20, 90), rows, columns, rng)
    page = seen(page, rng, float(rng.choice(degrees)), on_table=False)
    return Drawn(finished(page, rng).picture, "".join(texts))


KINDS: dict[str, Callable[[Generator], Drawn]] = {
    "flagged ones": flagged,
    "1 on a bar, 2 on a long foot": footed,
    "broken stroke, small crop": broken,
    "narrow or open 0": narrow,
    "plus signs": partial(signs, strokes=SIGNS[:1], size=(60, 110)),
    "brackets": partial(signs, strokes=BRACKETS, size=(80, 150)),
    "dark edge": dark_edge,
    "held notepad": notepad,
    "cut score": cut,
    "operator close to digits": operator,
    "tight crop": tight,
    "upright rules": upright_rules,
    "fat digit": fat,
    "page on its side": partial(turned, degrees=(90, -90)),
    "page upside down": partial(turned, degrees=(180,)),
}
OTHER_SIGNS = ("plus signs", "brackets", "operator close to digits")  # doubt about these is right


def drawn(kind: str, count: int, seed: int) -> Iterator[Drawn]:
    for index in range(count):
        yield KINDS[kind](np.random.default_rng([seed, index, *kind.encode()]))


# Measuring


def in_order(read: str, truth: str) -> int:
    """Return how many digits both have in common in the same order."""
    best = np.zeros((len(read) + 1, len(truth) + 1), int)
    for i, mine in enumerate(read):
        for j, true in enumerate(truth):
            longest = max(best[i, j + 1], best[i + 1, j])
            best[i + 1, j + 1] = max(longest, best[i, j] + 1) if mine == true else longest
    return int(best[-1, -1])


def judged(kind: str, truth: str, reading: Reading) -> tuple[bool, int]:
    """Return whether a picture is read rightly, and the number of certain wrong finds."""
    certain = "".join(str(find.digit) for find in reading if find.certain)
    everything = "".join(str(find.digit) for find in reading)
    counted = certain if kind in OTHER_SIGNS else everything
    return counted == truth, len(certain) - in_order(certain, truth)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or a folder with runs")
    parser.add_argument("--pictures", type=int, default=5, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures")
    parser.add_argument(
        "--kind", nargs="+", choices=list(KINDS), metavar="NAME", help="only these kinds"
    )
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the pictures as PNG")
    args = parser.parse_args()
    net = load_run(args.run).model.net
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
    print("| | pictures | right | certain wrong | read |")
    print("|---|---|---|---|---|")
    totals = np.zeros(3, int)
    for kind in args.kind or KINDS:
        counts, mistakes = np.zeros(3, int), []
        for index, (picture, truth) in enumerate(drawn(kind, args.pictures, args.seed)):
            if args.save:
                name = f"{kind}, {index} is {truth or 'none'}.png"
                Image.fromarray(picture).save(args.save / name)
            reading = recognize(picture, net)
            right, wrong = judged(kind, truth, reading)
            counts += (1, right, wrong)
            if not right:
                text = reading.text.replace("\n", " / ")
                mistakes.append(f"{truth or 'none'}: {text or 'none'}")
        print(f"| {kind} | {' | '.join(map(str, counts))} | {'; '.join(mistakes)} |", flush=True)
        totals += counts
    print(f"| **all** | {' | '.join(map(str, totals))} | |")


if __name__ == "__main__":
    main()
