"""Finding the digits of a picture: drawn pictures whose digits, places and conditions are known."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import center_of_mass
from sklearn.datasets import load_digits

from mnist_lightning.data import preparation
from mnist_lightning.data.preparation import MAX_DIGITS, WORKING_SIDE, find_digits
from mnist_lightning.errors import InputError


@pytest.fixture(autouse=True)
def one_thread_and_no_warning() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    with warnings.catch_warnings(action="error"):
        yield
    cv2.setNumThreads(threads)


def drawn(
    digit: int = 3, side: int = 200, at: tuple[int, int] | None = None, size: float = 4, pen: int = 14
) -> np.ndarray:
    """A black digit on a white square page, by default in the middle of it; ``at`` is its bottom left corner."""
    page = np.full((side, side), 255, np.uint8)
    (width, height), _ = cv2.getTextSize(str(digit), cv2.FONT_HERSHEY_SIMPLEX, size, pen)
    at = at or ((side - width) // 2, (side + height) // 2)
    cv2.putText(page, str(digit), at, cv2.FONT_HERSHEY_SIMPLEX, size, 0, pen, cv2.LINE_AA)
    return page


def written(lines: list[str], step: int = 130) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """A page of digits in lines, and their boxes in reading order; a blank leaves out a digit."""
    page = np.full((step * len(lines) + 60, step * max(map(len, lines)) + 60), 255, np.uint8)
    boxes = []
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            alone = np.full_like(page, 255)
            at = 40 + step * column, 130 + step * row + 9 * (column % 3)  # no hand keeps a line
            cv2.putText(alone, character, at, cv2.FONT_HERSHEY_SIMPLEX, 3, 0, 10, cv2.LINE_AA)
            rows, columns = np.nonzero(alone < 128)
            if len(rows):
                boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            page = np.minimum(page, alone)
    return page, boxes


def the_image(picture: np.ndarray) -> np.ndarray:
    """The prepared image of the only digit."""
    (digit,) = find_digits(picture)
    assert digit.image.shape == (28, 28)
    assert digit.image.dtype == np.uint8
    return digit.image


def moved(image: np.ndarray) -> list[np.ndarray]:
    """The image and its moves by a pixel, since the rounding of the centre of mass may hang by a thread."""
    return [np.roll(image, (y, x), (0, 1)).astype(float) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def apart(image: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of two prepared images, in grey levels, but for a move by a pixel."""
    return min(float(np.abs(image - other).mean()) for image in moved(image))


def alike(image: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two prepared images but for a move by a pixel.

    A width that rounds to another pixel costs about 0.05, as from 14 to 15 pixels for the drawn 0.
    """
    return max(float(np.corrcoef(image.ravel(), other.ravel())[0, 1]) for image in moved(image))


def reference(picture: np.ndarray) -> np.ndarray:
    """LeCun's preparation of a clean black digit on white, step by step in floating point."""
    ink = 1 - picture / 255
    rows, columns = np.nonzero(ink > 0.2)
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = ink.shape
    factor = 20 / max(height, width)
    size = round(height * factor), round(width * factor)
    # Every new pixel is the mean of those it covers: sums over the area, by interpolating the running sums.
    for axis, length in enumerate(size):
        sums = np.concatenate([np.zeros_like(ink.take([0], axis)), ink.cumsum(axis)], axis)
        places = np.linspace(0, ink.shape[axis], length + 1)
        sums = np.apply_along_axis(
            lambda column, places=places: np.interp(places, np.arange(len(column)), column), axis, sums
        )
        ink = np.diff(sums, axis=axis) * length / ink.shape[axis]
    y, x = (round(14 - centre - 0.5) for centre in center_of_mass(ink))
    image = np.zeros((28, 28))
    image[y : y + size[0], x : x + size[1]] = ink
    return image * 255


def overlap(box: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Intersection over union."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    both = max(0, width) * max(0, height)
    return both / ((box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1]) - both)


@pytest.mark.parametrize("digit", range(10))
def test_a_drawn_digit_is_prepared_as_mnist_was(digit: int) -> None:
    picture = drawn(digit)
    image = the_image(picture)
    rows, columns = np.nonzero(image)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    # Pixels are moved whole, so that the centre of mass is within half a pixel of the middle.
    assert np.abs(np.array(center_of_mass(image.astype(float))) - 14).max() <= 0.51
    assert image.max() == 255
    assert alike(image, reference(picture)) > 0.91


def test_a_mnist_image_comes_back_nearly_itself(real_mnist: Path) -> None:
    content = np.fromfile(real_mnist / "MNIST/raw/train-images-idx3-ubyte", np.uint8, 16 + 1000 * 784)
    images = content[16:].reshape(-1, 28, 28)
    found = [find_digits(image) for image in images]
    assert sum(len(digits) == 1 for digits in found) >= 995
    differences = [
        apart(digits[0].image, image) for digits, image in zip(found, images, strict=True) if len(digits) == 1
    ]
    assert np.mean(differences) < 1.6
    assert np.quantile(differences, 0.95) < 5


def test_low_resolution_scans_are_scaled_up() -> None:
    images = load_digits().images[:100]  # 8x8, levels 0-16
    found = [find_digits(np.pad((image * 15.9).astype(np.uint8), 2)) for image in images]
    assert sum(len(digits) == 1 for digits in found) >= 97
    for digits in found:
        rows, columns = np.nonzero(digits[0].image)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20


@pytest.mark.parametrize("digit", range(10))
def test_a_negative_gives_the_same_image(digit: int) -> None:
    np.testing.assert_array_equal(the_image(255 - drawn(digit)), the_image(drawn(digit)))


def test_a_large_negative_gives_the_same_image_but_for_rounding() -> None:
    picture = drawn(5, side=2000, size=40, pen=130)
    np.testing.assert_allclose(the_image(255 - picture).astype(int), the_image(picture), atol=2)


@pytest.mark.parametrize("at", [(5, 120), (300, 120), (5, 390), (300, 390)])
def test_the_place_on_the_page_does_not_matter(at: tuple[int, int]) -> None:
    np.testing.assert_array_equal(the_image(drawn(3, side=400, at=at)), the_image(drawn(3, side=400)))


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("scale", [0.7, 1, 2, 8, 16, 50])
def test_the_size_hardly_matters(digit: int, scale: float) -> None:
    picture = drawn(digit, side=int(50 * scale), size=scale, pen=max(1, round(3.5 * scale)))
    assert alike(the_image(picture), the_image(drawn(digit))) > 0.91


Y, X = np.mgrid[0:1:200j, 0:1:200j]
CONDITIONS = {
    "noise": lambda page, rng: page + rng.normal(0, 12, page.shape),
    "light from one side": lambda page, rng: page * (0.45 + 0.5 * X * Y),
    "vignette": lambda page, rng: page * (1 - 0.9 * ((X - 0.5) ** 2 + (Y - 0.5) ** 2)),
    "edge of a shadow": lambda page, rng: page * np.where(X + Y > 1, 0.55, 1),
    "faint": lambda page, rng: 180 + page / 255 * 30,
    "grey ink on grey paper": lambda page, rng: 70 + page * 0.4,
    "photograph": lambda page, rng: (
        (20 + page * 0.7) * (1 - 0.7 * ((X - 0.3) ** 2 + Y**2)) + rng.normal(0, 4, page.shape)
    ),
}


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("negative", [False, True])
def test_light_and_noise_hardly_matter(condition: str, negative: bool, digit: int) -> None:
    page = CONDITIONS[condition](drawn(digit), np.random.default_rng(digit))
    page = np.clip(page, 0, 255).round().astype(np.uint8)
    image = the_image(255 - page if negative else page)
    assert alike(image, the_image(drawn(digit))) > 0.92


@pytest.mark.parametrize("lines", [["7"], ["0123456789"], ["314", "159", "265"], ["1 2", "34", " 56"], ["8", "0", "1"]])
def test_the_digits_of_a_page_are_found_in_reading_order(lines: list[str]) -> None:
    page, boxes = written(lines)
    found = find_digits(page)
    assert len(found) == len(boxes)
    for digit, box in zip(found, boxes, strict=True):
        assert overlap(digit.box, box) > 0.9
        left, top, right, bottom = box
        alone = np.pad(page[top:bottom, left:right], 40, constant_values=255)
        assert apart(digit.image, the_image(alone)) < 3


def test_a_full_page_is_read() -> None:
    page, boxes = written(["1234567890"] * 20)
    found = find_digits(page)
    assert len(found) == 200
    assert min(overlap(digit.box, box) for digit, box in zip(found, boxes, strict=True)) > 0.8


def test_boxes_are_in_the_pixels_of_a_large_picture() -> None:
    page, boxes = written(["27", "45"])
    large = cv2.resize(page, None, fx=10, fy=10, interpolation=cv2.INTER_LINEAR)
    assert max(large.shape) > WORKING_SIDE
    for digit, box in zip(find_digits(large), boxes, strict=True):
        np.testing.assert_allclose(digit.box, 10 * np.array(box), atol=15)


def test_the_bar_of_a_five_stays_with_it() -> None:
    page = np.full((200, 200), 255, np.uint8)
    cv2.polylines(page, [np.array([[70, 60], [70, 95], [105, 90], [120, 115], [105, 140], [70, 145]])], False, 0, 8)
    cv2.line(page, (84, 52), (125, 48), 0, 8)  # does not touch
    assert cv2.connectedComponents(255 - page)[0] == 3
    (digit,) = find_digits(page)
    rows, columns = np.nonzero(page < 128)
    assert overlap(digit.box, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)) > 0.9
    assert alike(digit.image, reference(page)) > 0.9


def test_a_broken_stroke_stays_whole() -> None:
    page = drawn(7)
    page[130:135] = 255
    assert cv2.connectedComponents(255 - page)[0] == 3
    (digit,) = find_digits(page)
    assert alike(digit.image, the_image(drawn(7))) > 0.95


def specks(page: np.ndarray) -> None:
    for x, y in np.random.default_rng(0).integers(5, 195, (12, 2)):
        page[y : y + 2, x : x + 2] = 0


def blot(page: np.ndarray) -> None:
    cv2.circle(page, (180, 180), 8, 0, -1)


def frame(page: np.ndarray) -> None:
    cv2.rectangle(page, (4, 4), (195, 195), 0, 3)


def ruled(page: np.ndarray) -> None:
    page[170:173] = page[20:23] = 90


def underlined(page: np.ndarray) -> None:
    page[165:169, 30:170] = 0


def cut_off(page: np.ndarray) -> None:
    page[80:110, :12] = 0  # of a neighbour


@pytest.mark.parametrize("spoil", [specks, blot, frame, ruled, underlined, cut_off])
@pytest.mark.parametrize("digit", range(10))
def test_what_is_no_digit_is_ignored(spoil: object, digit: int) -> None:
    page = drawn(digit)
    spoil(page)
    assert apart(the_image(page), the_image(drawn(digit))) < 4


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (28, 28, 3), (300, 200), (300, 200, 2), (2000, 1700, 4)])
def test_a_page_of_one_grey_has_no_digit(level: int, shape: tuple[int, ...]) -> None:
    assert find_digits(np.full(shape, level, np.uint8)) == []


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (1200, 900)])
@pytest.mark.parametrize("deviation", [2, 8])
def test_a_page_of_noise_has_no_digit(shape: tuple[int, int], deviation: int) -> None:
    noise = np.random.default_rng(0).normal(200, deviation, shape)
    assert find_digits(noise.clip(0, 255).round().astype(np.uint8)) == []


@pytest.mark.parametrize("slope", [(0, 1), (1, 0), (1, 1), (-1, 0.5)])
@pytest.mark.parametrize("shape", [(100, 100), (600, 400)])
@pytest.mark.parametrize("strength", [30, 60, 120])
def test_a_page_of_uneven_light_has_no_digit(slope: tuple[float, float], shape: tuple[int, int], strength: int) -> None:
    y, x = np.mgrid[0 : 1 : shape[0] * 1j, 0 : 1 : shape[1] * 1j]
    light = 160 + strength * (slope[0] * (x - 0.5) + slope[1] * (y - 0.5)) / 2
    noise = np.random.default_rng(0).normal(0, 2, shape)
    assert find_digits((light + noise).clip(0, 255).round().astype(np.uint8)) == []


def with_alpha(ink: tuple[int, ...], paper: tuple[int, ...], alpha: np.ndarray) -> np.ndarray:
    colour = np.where(drawn()[..., None] < 128, np.uint8(ink), np.uint8(paper))
    return np.concatenate([colour, alpha[..., None]], axis=2)


@pytest.mark.parametrize("ink", [(0,), (255,), (0, 0, 0), (255, 255, 255), (200, 30, 30), (255, 255, 0)])
@pytest.mark.parametrize("hidden", [0, 255])
def test_ink_on_nothing_is_found(ink: tuple[int, ...], hidden: int) -> None:
    """Whatever colour is hidden behind full transparency."""
    picture = with_alpha(ink, (hidden,) * len(ink), 255 - drawn())
    assert apart(the_image(picture), the_image(drawn())) < 5


@pytest.mark.parametrize("hidden", [0, 255])
@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0)])
def test_a_transparent_margin_is_paper(ink: int, paper: int, hidden: int) -> None:
    alpha = np.zeros((200, 200), np.uint8)
    alpha[20:180, 20:180] = 255
    picture = with_alpha((ink,), (paper,), alpha)
    picture[alpha == 0, 0] = hidden
    assert apart(the_image(picture), the_image(drawn())) < 5


def test_a_picture_of_full_transparency_has_no_digit() -> None:
    assert find_digits(with_alpha((0, 0, 0), (255, 255, 255), np.zeros((200, 200), np.uint8))) == []


@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        ((0, 0, 160), (255, 255, 255)),  # a blue pen
        ((200, 30, 30), (250, 240, 220)),
        ((240, 240, 240), (30, 80, 50)),  # chalk on a blackboard
        ((255, 220, 0), (20, 20, 90)),
    ],
)
def test_coloured_ink_is_found(ink: tuple[int, ...], paper: tuple[int, ...]) -> None:
    share = drawn()[..., None] / 255
    picture = (np.array(paper) * share + np.array(ink) * (1 - share)).round().astype(np.uint8)
    assert apart(the_image(picture), the_image(drawn())) < 4
    opaque = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(the_image(opaque), the_image(picture))


def test_a_view_is_read_as_its_copy_and_left_alone() -> None:
    page, _ = written(["25", "64"])
    for view in (page[::-1], page[:, ::-1], page.T, page[::2, ::2], np.asfortranarray(page)):
        view.flags.writeable = False
        before = view.copy()
        for digit, expected in zip(find_digits(view), find_digits(before), strict=True):
            np.testing.assert_array_equal(digit.image, expected.image)
            assert digit.box == expected.box
        np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((28, 28), np.float32), r"a picture is uint8 \(H, W\) or \(H, W, 2 to 4\), got float32 \(28, 28\)"),
        (np.zeros((28, 28), bool), "got bool"),
        (np.zeros(28, np.uint8), r"got uint8 \(28,\)"),
        (np.zeros((28, 28, 1), np.uint8), r"got uint8 \(28, 28, 1\)"),
        (np.zeros((28, 28, 5), np.uint8), r"got uint8 \(28, 28, 5\)"),
        (np.zeros((1, 28, 28, 3), np.uint8), r"got uint8 \(1, 28, 28, 3\)"),
        (np.zeros((0, 28), np.uint8), r"at least one pixel, got \(0, 28\)"),
        (np.zeros((28, 0, 3), np.uint8), r"at least one pixel, got \(28, 0, 3\)"),
    ],
)
def test_what_is_no_picture_is_refused(picture: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_digits(picture)


def checks(side: int, step: int, bar: int) -> np.ndarray:
    page = np.zeros((side, side), np.uint8)
    for y in range(0, side - bar, step):
        for x in range(0, side - bar, step):
            page[y : y + bar, x : x + bar // 2] = 255
    return page


def test_too_many_marks_are_refused_and_quickly() -> None:
    assert len(find_digits(checks(700, 32, 20)[:, : 32 * 22])) == 22 * 22 <= MAX_DIGITS
    with pytest.raises(InputError, match="529 separate marks, more than 500: this is no picture of digits"):
        find_digits(checks(737, 32, 20))


def test_a_texture_around_a_digit_takes_no_time() -> None:
    page = np.zeros((1600, 1600), np.uint8)
    page[::4, ::4] = 255
    page[800:812, 800:803] = 255
    begin = time.perf_counter()
    assert len(find_digits(page)) == 1
    assert time.perf_counter() - begin < 3  # of 160,000 dots each was held against each digit: 45 s


def shapes() -> list[tuple[int, ...]]:
    tiny = [(1, 1), (1, 2), (4, 1), (5, 3), (2, 2, 2), (4, 1, 3), (1, 4, 4)]
    return [*tiny, (1, 300), (300, 1), (1, 5000), (9000, 1), (5000, 2, 4), (3, 8607, 4), (2471, 1754), (1754, 2471, 3)]


@pytest.mark.parametrize("shape", shapes())
@pytest.mark.parametrize("kind", ["noise", "one pixel", "two grey levels", "gradient", "rectangles"])
def test_any_picture_gives_digits_inside_it_or_none(shape: tuple[int, ...], kind: str) -> None:
    """Of (1, 5000) nothing was left when it was shrunk, boxes stuck out, and (1, 1) was no array to add to."""
    rng = np.random.default_rng(0)
    picture = np.full(shape, 200, np.uint8)
    if kind == "noise":
        picture = rng.integers(0, 256, shape, np.uint8)
    elif kind == "one pixel":
        picture[shape[0] // 2, shape[1] - 1] = 0
    elif kind == "two grey levels":
        picture = np.where(rng.random(shape) < 0.1, np.uint8(10), np.uint8(240))
    elif kind == "gradient":
        picture[:] = np.linspace(0, 255, shape[1]).astype(np.uint8).reshape(-1, *[1] * (len(shape) - 2))
    else:
        picture[shape[0] // 3 :, shape[1] // 3 :] = 30
        picture[: shape[0] // 2 + 1, : shape[1] // 4 + 1] = 250
    check_whatever_is_found(picture)


def check_whatever_is_found(picture: np.ndarray) -> None:
    try:
        found = find_digits(picture)
    except InputError as error:
        assert "this is no picture of digits" in str(error)  # noqa: PT017  an answer as good as another
        return
    for image, (left, top, right, bottom) in found:
        assert image.any()
        assert 0 <= left < right <= picture.shape[1]
        assert 0 <= top < bottom <= picture.shape[0]


def test_a_line_and_a_speck_are_no_digit() -> None:
    page = np.zeros((60, 60), np.uint8)
    page[30:36, 10:50] = 255
    page[10:12, 10:12] = 255
    assert find_digits(page) == []


def test_random_pictures_are_taken() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        height, width = rng.integers(1, 300, 2)
        page = np.full((height, width), rng.integers(0, 256), np.uint8)
        for _ in range(rng.integers(0, 6)):
            at, ends = rng.integers(-20, 300, (2, 2)).tolist()
            cv2.line(page, at, ends, int(rng.integers(0, 256)), int(rng.integers(1, 12)))
        page = np.clip(page + rng.normal(0, rng.choice([0, 3, 30]), page.shape), 0, 255).astype(np.uint8)
        check_whatever_is_found(page)


def test_a_hairline_across_a_large_page_does_not_fail() -> None:
    page = np.full((1500, 1500), 255, np.uint8)
    cv2.line(page, (300, 300), (1200, 1200), 225, 1)
    cv2.line(page, (700, 300), (900, 500), 0, 3)
    assert all(digit.image.shape == (28, 28) for digit in find_digits(page))
    ink, labels = np.eye(1000, dtype=np.uint8) * 20, np.eye(1000, dtype=np.int32)
    assert preparation._digit(ink, labels, [1], (1.0, 1.0)).box == (0, 0, 1000, 1000)
