"""Pages as people take pictures of them: sheets on tables, lines, touching digits, signs."""

from collections.abc import Callable
from itertools import product

import cv2
import numpy as np
import pytest
from painting import drawn, overlap, written

from mnist_lightning.pictures.detector import detect, prepared
from mnist_lightning.pictures.digits import find_digits
from mnist_lightning.pictures.ink import find_ink
from mnist_lightning.pictures.paper import find_sheet, skew

LINES = ["4217", "305", "96 8"]
CORNERS = np.array([[120, 90], [1010, 150], [940, 800], [60, 690]], np.float32)


def photographed(
    page: np.ndarray, boxes: list, table: int = 60
) -> tuple[np.ndarray, list, np.ndarray]:
    """The page on a table, seen at an angle: the picture, the boxes in it, and the transform."""
    height, width = page.shape
    edge = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    transform = cv2.getPerspectiveTransform(edge, CORNERS)
    picture = cv2.warpPerspective(page, transform, (1100, 900), borderValue=table)
    return picture, [transformed(box, transform) for box in boxes], transform


def transformed(box: tuple[int, ...], transform: np.ndarray) -> tuple[int, ...]:
    left, top, right, bottom = box
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)[
        None
    ]
    x, y = cv2.perspectiveTransform(corners, transform)[0].T
    return x.min(), y.min(), x.max(), y.max()


def assert_found(picture: np.ndarray, boxes: list, least: float = 0.7) -> None:
    found = find_digits(picture)
    assert len(found) == len(boxes)
    assert min(overlap(digit.box, box) for digit, box in zip(found, boxes, strict=True)) > least


def test_sheet_on_a_table() -> None:
    page, boxes = written(LINES)
    picture, seen, _ = photographed(page, boxes)
    straight, back = find_sheet(picture)
    assert straight.min() < 100 < 240 < np.median(straight)
    corner = back @ np.array([0, 0, 1])  # a margin of the sheet is left out
    np.testing.assert_allclose(corner[:2] / corner[2], CORNERS[0], atol=25)
    for each in (picture, 255 - picture):
        assert_found(each, seen)
    assert_found(picture[:, :900], seen)  # the picture cuts the sheet off
    for plain in (page, drawn(1), np.full((300, 300), 200, np.uint8)):
        assert find_sheet(plain)[0] is plain


@pytest.mark.parametrize("angle", [-28, -9, 4, 17, 30])
def test_turned_page(angle: float) -> None:
    page, boxes = written(LINES)
    page = np.pad(page, 150, constant_values=255)
    matrix = cv2.getRotationMatrix2D((page.shape[1] / 2, page.shape[0] / 2), -angle, 1)
    turned = cv2.warpAffine(page, matrix, page.shape[::-1], borderValue=255)
    inked = find_ink(255 - turned)
    assert inked is not None
    assert skew(inked[1]) == pytest.approx(angle + 3, abs=3)  # the digits of the page are not level
    transform = np.vstack([matrix, [0, 0, 1]])
    seen = [transformed(np.add(box, 150), transform) for box in boxes]
    assert_found(turned, seen, 0.5)
    assert [digit.line for digit in find_digits(turned)] == [1] * 4 + [2] * 3 + [3] * 3
    assert skew(255 - drawn(7) >> 7) == 0


def ruled(page: np.ndarray) -> None:
    for y in range(24, 460, 66):
        cv2.line(page, (0, y), (page.shape[1], y + 3), 120, 3)


def squared(page: np.ndarray) -> None:
    for place in range(30, 999, 65):
        cv2.line(page, (0, place), (999, place), 150, 2)
        cv2.line(page, (place, 0), (place, 999), 150, 2)


def underlined(page: np.ndarray) -> None:
    for y in (136, 266, 396):
        cv2.line(page, (30, y), (560, y + 4), 0, 5)


def framed(page: np.ndarray) -> None:
    for x, y in product(range(25, 500, 130), range(40, 400, 130)):
        cv2.rectangle(page, (x, y), (x + 105, y + 125), 60, 4)


@pytest.mark.parametrize("rule", [ruled, squared, underlined, framed])
def test_lines_of_the_paper(rule: Callable[[np.ndarray], None]) -> None:
    page, boxes = written(LINES)
    rule(page)
    assert_found(page, boxes)


def test_lines_and_numbers() -> None:
    page, _ = written(["12 345", "6 78"], step=80)
    places = [(digit.line, digit.number) for digit in find_digits(page)]
    assert places == [(1, 1), (1, 1), (1, 2), (1, 2), (1, 2), (2, 1), (2, 2), (2, 2)]


@pytest.mark.parametrize("pair", ["38", "60", "25", "98"])
def test_digits_that_touch(pair: str) -> None:
    ink = [255 - drawn(int(digit)) for digit in pair]
    left, right = (each[:, np.flatnonzero(each.any(axis=0))] for each in ink)
    width = left.shape[1] - 6
    page = np.zeros((200, width + right.shape[1]), np.uint8)
    page[:, : left.shape[1]] = left
    page[:, width:] = np.maximum(page[:, width:], right)
    assert cv2.connectedComponents((page > 100).astype(np.uint8))[0] == 2
    first, second = find_digits(255 - np.pad(page, 60))
    assert abs(first.box[2] - 60 - width) < 12
    assert abs(second.box[0] - 60 - width) < 12


def test_detector() -> None:
    digits = np.stack([cropped(drawn(digit, size=3, pen=9)) for digit in range(10)])
    answers = detect(digits)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert answers.argmax(axis=1).tolist() == list(range(10))
    assert detect(digits[:0]).shape == (0, 11)
    np.testing.assert_allclose(detect(np.repeat(digits, 30, axis=0))[::30], answers, atol=1e-5)
    for sign in ("+", "=", "x", "A", "%", "&", "?"):
        assert detect(cropped(drawn(sign, 300, (90, 200), size=5))[None])[0, 10] > 0.5


def cropped(page: np.ndarray) -> np.ndarray:
    """The image of what is black on a page."""
    x, y, width, height = cv2.boundingRect(255 - page)
    return prepared(np.ascontiguousarray(255 - page[y : y + height, x : x + width]))
