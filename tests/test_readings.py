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
