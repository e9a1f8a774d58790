"""Readings of a picture compete: one digit or a page, which way is up, which colour is ink."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from painting import bounds, drawn, written

from mnist_lightning.cli.main import main
from mnist_lightning.pictures.detector import NO_DIGIT
from mnist_lightning.pictures.digits import Found, find_digits

LINES = ["2345", "7452", "3574"]


def text(found: list[Found]) -> list[str]:
    """What the detector reads in each line."""
    lines: dict[int, str] = {}
    for digit in found:
        number = int(digit.probabilities[:NO_DIGIT].argmax())
        lines[digit.line] = lines.get(digit.line, "") + str(number)
    return list(lines.values())


@pytest.mark.parametrize("quarters", range(4))
def test_a_page_may_lie_on_its_side_or_upside_down(quarters: int) -> None:
    page, boxes = written(LINES)
    found = find_digits(np.rot90(page, quarters))
    assert text(found) == LINES
    for digit, box in zip(found, boxes, strict=True):
        alone = np.full_like(page, 255)
        alone[box[1] : box[3], box[0] : box[2]] = 0
        np.testing.assert_allclose(digit.box, bounds(np.rot90(alone, quarters)), atol=3)


@pytest.mark.parametrize("side", ["left", "top"])
def test_a_dark_edge_does_not_make_the_paper_ink(side: str) -> None:
    page, _ = written(LINES)
    page = np.pad(page, 60, constant_values=255)
    page = np.clip(page.astype(int) - 75, 60, None).astype(np.uint8)  # grey paper, pale ink
    edge = page[:, :20] if side == "left" else page[:20]
    edge[:] = 5
    assert text(find_digits(page)) == LINES


@pytest.mark.parametrize("size", [16, 20, 45])
@pytest.mark.parametrize("digit", [2, 3, 4, 5, 7])
def test_a_tight_crop_is_one_digit(digit: int, size: int) -> None:
    page = drawn(digit)
    left, top, right, bottom = bounds(page)
    crop = cv2.resize(page[top:bottom, left:right], (size, size), interpolation=cv2.INTER_AREA)
    for picture in (crop, 255 - crop):
        (found,) = find_digits(picture)
        assert int(found.probabilities[:NO_DIGIT].argmax()) == digit
        assert found.box == (0, 0, size, size)


def test_two_digits_in_a_small_picture_stay_two() -> None:
    page, _ = written(["25"])
    small = cv2.resize(page, (45, 28), interpolation=cv2.INTER_AREA)
    assert text(find_digits(small)) == ["25"]


def test_single_needs_pictures(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--single", "--ckpt_path", str(trained)]) == 2
    assert "--single is for pictures; name them first" in capsys.readouterr().err


def test_single_makes_one_digit_of_broken_strokes() -> None:
    page = np.zeros((28, 28), np.uint8)  # a 0 that is open above and below
    cv2.ellipse(page, (14, 14), (7, 9), 0, -60, 60, 255, 3)
    cv2.ellipse(page, (14, 14), (7, 9), 0, 120, 240, 255, 3)
    (found,) = find_digits(page, single=True)
    assert found.box == bounds(255 - page)


def test_a_glint_does_not_hide_a_faint_digit() -> None:
    page = np.zeros((120, 120), np.uint8)
    page[10:13, 10:13] = 255
    page = np.maximum(page, (255 - drawn(3, side=120, size=2, pen=7)) // 8)
    for picture in (page, 255 - page):
        assert all(found.pixels.any() for found in find_digits(picture, single=True))


def likely(found: list[Found]) -> str:
    """The digits that the detector is sure of, in reading order."""
    sure = [digit for digit in found if digit.is_clear and digit.probabilities[NO_DIGIT] < 0.3]
    return "".join(str(digit.probabilities[:NO_DIGIT].argmax()) for digit in sure)


def signs(*strokes: list[tuple[float, float]]) -> np.ndarray:
    """A page with a row of six equal signs; the strokes go through points of a unit square."""
    page = np.full((400, 800), 255, np.uint8)
    for column in range(6):
        for stroke in strokes:
            points = np.array(stroke) * 90 + (40 + 125 * column, 150)
            cv2.polylines(page, [points.round().astype(np.int32)], False, 0, 4, cv2.LINE_AA)
    return page


ARC = [(0.8 - 0.35 * t * t, 0.5 + t * 0.9) for t in np.linspace(-1, 1, 20)]


@pytest.mark.parametrize(
    "strokes",
    [
        [[(0.5, 0), (0.5, 1)], [(0, 0.5), (1, 0.5)]],  # plus
        [[(0, 0.1), (1, 0.9)], [(0, 0.9), (1, 0.1)]],  # times
        [ARC],  # a bracket
        [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 0.5), (1, 0.5)]],  # H
    ],
)
def test_signs_are_no_sure_digits(strokes: list[list[tuple[float, float]]]) -> None:
    for turned in range(4):
        assert likely(find_digits(np.rot90(signs(*strokes), turned))) == ""


def test_a_sign_takes_no_neighbour_along() -> None:
    page = np.full((220, 700), 255, np.uint8)
    for column, digit in ((20, "4"), (140, "2"), (340, "3"), (460, "5")):
        cv2.putText(page, digit, (column, 160), cv2.FONT_HERSHEY_SIMPLEX, 4, 0, 8, cv2.LINE_AA)
    cv2.line(page, (245, 110), (325, 110), 0, 6)
    cv2.line(page, (285, 75), (285, 145), 0, 6)
    assert likely(find_digits(page)) == "4235"


def test_pale_upright_rules_are_left_out() -> None:
    page, _ = written(["2345"])
    for x in range(25, page.shape[1], 60):
        rule = np.full_like(page, 255)
        cv2.line(rule, (x, 0), (x + 9, len(page)), 170, 3, cv2.LINE_AA)
        page = np.minimum(page, rule)
    page = cv2.copyMakeBorder(page, 90, 90, 0, 0, cv2.BORDER_REPLICATE)
    assert likely(find_digits(page)) == "2345"


def test_a_table_and_fingers_around_a_page_are_left_out() -> None:
    page, _ = written(LINES)
    photo = np.full((page.shape[0] + 300, page.shape[1] + 200), 40, np.uint8)
    photo[60:-120, 90:-90] = 220
    photo[60 : 60 + len(page), 90 : 90 + page.shape[1]] = page[:, : photo.shape[1] - 180] * 0.86
    for y in (300, 420):
        cv2.ellipse(photo, (70, y), (70, 28), 10, 0, 360, 110, -1, cv2.LINE_AA)
    assert likely(find_digits(photo)) == "".join(LINES)


def test_a_crop_with_a_comma_keeps_the_digit_at_its_edge() -> None:
    page = np.full((130, 220), 255, np.uint8)
    cv2.polylines(page, [np.array([(12, 4), (80, 6), (40, 112)])], False, 0, 9, cv2.LINE_AA)
    cv2.line(page, (40, 112), (30, 129), 0, 7, cv2.LINE_AA)
    cv2.putText(page, "5", (110, 112), cv2.FONT_HERSHEY_SIMPLEX, 4.5, 0, 9, cv2.LINE_AA)
    assert likely(find_digits(page)) == "75"


def test_a_1_stands_in_a_place_as_wide_as_others() -> None:
    page, _ = written(["31415"], step=80)
    assert {digit.number for digit in find_digits(page)} == {1}
    apart, _ = written(["31 415"], step=80)
    assert [digit.number for digit in find_digits(apart)] == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("count", [2, 4, 6, 9])
def test_a_column_of_digits_is_not_one_1(count: int) -> None:
    column = "253472357"[:count]
    page, _ = written(list(column), step=90)
    for picture in (page, cv2.resize(page, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA)):
        assert "".join(text(find_digits(picture))) == column


def test_a_bar_of_a_letter_is_no_sure_1() -> None:
    page, _ = written(["2335"])
    page = np.pad(page, ((0, 0), (0, 200)), constant_values=255)
    letter = np.array([(590, 130), (590, 55), (630, 105), (670, 55), (670, 130)])
    cv2.polylines(page, [letter], False, 0, 10, cv2.LINE_AA)  # M
    assert likely(find_digits(page)) == "2335"
