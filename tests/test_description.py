"""What ``describe`` measures, prints and draws, against plain NumPy and what is known of MNIST."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from mnist_lightning import MNIST
from mnist_lightning.evaluation import description, description_figures


def digits(number: int, absent: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice([digit for digit in range(10) if digit not in absent], number)
    images = rng.integers(3, 200, (number, 28, 28), np.uint8)
    images[:, :5] = 0
    images[:, 5] *= rng.random((number, 28)) < 0.05  # rarely anything
    return images, labels


@pytest.mark.parametrize("number", [1, 7, 499, 500, 501, 1234])
def test_a_description_is_what_numpy_computes(number: int) -> None:
    images, labels = digits(number)
    found = description.describe(images, labels)
    assert found == {
        "num_examples": number,
        "num_per_digit": [(labels == digit).sum() for digit in range(10)],
        "pixel_mean": pytest.approx((images / 255).mean(), rel=1e-12),
        "pixel_std": pytest.approx((images / 255).std(), rel=1e-12),
        "pixel_min": images.min(),
        "pixel_max": images.max(),
        "always_zero": (images == 0).all(axis=0).sum() / 784,
    }
    assert {type(value) for value in found.values()} == {int, float, list}  # json takes nothing of NumPy's


def test_real_mnist_has_the_mean_and_deviation_that_everybody_uses(real_mnist: Path) -> None:
    found = description.describe(*MNIST(str(real_mnist)).load("train"))
    assert found == {
        "num_examples": 60_000,
        "num_per_digit": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "pixel_mean": pytest.approx(0.1306604762738429, rel=1e-15),
        "pixel_std": pytest.approx(0.3081078038564622, rel=1e-14),
        "pixel_min": 0,
        "pixel_max": 255,
        "always_zero": 67 / 784,
    }


def test_images_of_one_value() -> None:
    found = description.describe(np.full((600, 28, 28), 51, np.uint8), None)
    assert found == {
        "num_examples": 600,
        "num_per_digit": None,
        "pixel_mean": 0.2,
        "pixel_std": 0.0,
        "pixel_min": 51,
        "pixel_max": 51,
        "always_zero": 0.0,
    }


def described(number: int, per_digit: list[int] | None) -> dict[str, Any]:
    shared = {"pixel_mean": 0.13066, "pixel_std": 0.30811, "pixel_min": 0, "pixel_max": 255, "always_zero": 67 / 784}
    return {"num_examples": number, "num_per_digit": per_digit, **shared}


SPLITS = {
    "training": described(48_000, [4_800, 48_000 - 8 * 4_800, *[4_800] * 7, 0]),
    "validation": described(100, [10] * 10),
    "test": described(28_000, None),
}


def test_description_table() -> None:
    assert description.description_table(SPLITS).splitlines() == [
        "                  training   validation     test",
        "images              48,000          100   28,000",
        "digit 0      4,800  10.00%   10  10.00%        -",
        "digit 1      9,600  20.00%   10  10.00%        -",
        *(f"digit {digit}      4,800  10.00%   10  10.00%        -" for digit in range(2, 9)),
        "digit 9          0   0.00%   10  10.00%        -",
        "pixel mean          0.1307       0.1307   0.1307",
        "pixel std           0.3081       0.3081   0.3081",
        "pixel min                0            0        0",
        "pixel max              255          255      255",
        "always 0              8.5%         8.5%     8.5%",
        "",
        "Pixel mean and std are fractions of white, min and max of 0-255; always 0 is the share of an image's",
        "pixels that are black in every image.",
    ]


def picture(figure: Figure) -> np.ndarray:
    """The picture that a figure shows; not a number where there is paper."""
    return figure.axes[0].images[0].get_array().astype(float).filled(np.nan)


def tile(figure: Figure, row: int, column: int, height: int = 30) -> np.ndarray:
    return picture(figure)[row * height : row * height + 28, column * 30 : column * 30 + 28]


def test_the_grid_shows_the_first_of_each_digit() -> None:
    images, labels = digits(400, absent=(7,))
    images, labels = np.concatenate([images, images[:3]]), np.append(labels, [7, 7, 7])
    figure = description_figures.sample_grid(images, labels)
    assert picture(figure).shape == (10 * 30 - 2, 12 * 30 - 2)
    for digit in range(10):
        expected = images[labels == digit][:12]
        assert len(expected) == (3 if digit == 7 else 12)
        for column, image in enumerate(expected):
            np.testing.assert_array_equal(tile(figure, digit, column), image)
    assert np.isnan(tile(figure, 7, 3)).all()
    assert np.isnan(picture(figure)[28:30]).all()
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == [str(digit) for digit in range(10)]
    assert axis.get_title() == "The first 12 images of each digit"
    assert axis.images[0].get_clim() == (0, 255)


@pytest.mark.parametrize("number", [5, 150])
def test_the_grid_without_labels_shows_the_first_images(number: int) -> None:
    images, _ = digits(number)
    figure = description_figures.sample_grid(images, None)
    for place in range(120):
        found = tile(figure, place // 12, place % 12)
        np.testing.assert_array_equal(found, images[place] if place < number else np.full((28, 28), np.nan))
    axis = figure.axes[0]
    assert axis.get_title() == f"The first {min(number, 120)} images, which have no labels"
    assert [text.get_text() for text in axis.get_yticklabels()][:3] == ["1", "13", "25"]


def test_mean_digits() -> None:
    images, labels = digits(300, absent=(6,))
    figure = description_figures.mean_digits(images, labels)
    for digit in range(10):
        found = tile(figure, digit // 5, digit % 5, height=37)
        if digit == 6:
            assert np.isnan(found).all()
        else:
            np.testing.assert_allclose(found, (images[labels == digit] / 255).mean(axis=0), rtol=1e-12)
    axis, bar = figure.axes
    assert [text.get_text() for text in axis.texts] == [f"{d} ({(labels == d).sum()})" for d in range(10)]
    assert axis.images[0].get_clim() == bar.get_ylim() == (0, 1)


def test_the_mean_without_labels() -> None:
    images, _ = digits(300)
    figure = description_figures.mean_digits(images, None)
    np.testing.assert_allclose(picture(figure), (images / 255).mean(axis=0), rtol=1e-12)
    assert figure.get_suptitle() == "The mean of 300 images"


def test_digit_counts() -> None:
    figure = description_figures.digit_counts(SPLITS)
    training, validation = figure.axes[0].containers
    assert [bar.get_height() for bar in training] == pytest.approx([0.1, 0.2, *[0.1] * 7, 0])
    assert [bar.get_height() for bar in validation] == pytest.approx([0.1] * 10)
    for digit in range(10):  # side by side, together centred on the digit
        left, right = training[digit], validation[digit]
        assert left.get_x() + left.get_width() == pytest.approx(right.get_x())
        assert right.get_x() == pytest.approx(digit)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training (48,000)", "validation (100)"]


def test_digit_counts_without_labels() -> None:
    figure = description_figures.digit_counts({"test": SPLITS["test"]})
    assert [text.get_text() for text in figure.axes[0].texts] == ["no labels"]
    assert not figure.axes[0].containers


def test_describing_needs_neither_torch_nor_lightning() -> None:
    modules = "mnist_lightning.evaluation.description, mnist_lightning.evaluation.description_figures"
    program = (
        f"import sys, {modules}; print([m for m in ('torch', 'lightning', 'matplotlib.pyplot') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
