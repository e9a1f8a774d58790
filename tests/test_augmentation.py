"""Augmented digits, against a slow reference written from the geometry."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal
from numpy.typing import NDArray
from scipy import ndimage

from mnist_lightning import Augmentation
from mnist_lightning.cli.main import main
from mnist_lightning.data.augmentation import LIMITS, augmented

STILL = {"rotation": 0, "scale": 0, "shear": 0, "shift": 0, "elastic": 0}
CENTRE = np.array([13.5, 13.5])
RNG = np.random.default_rng(0)
NOISE = RNG.random((4, 28, 28))


def to_tensor(images: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(images).float().unsqueeze(1)


def slow(
    image: NDArray[np.float64],
    module: Augmentation,
    draws: NDArray[np.float64],
    bends: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Shift, scale, shear, rotate about the centre; y points down, angles are clockwise."""
    angle, slant = np.radians(draws[0] * module.rotation), np.radians(draws[1] * module.shear)
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, np.tan(slant)], [0, 1]])
    scale = np.diag(1 + module.scale * draws[2:4])
    back = np.linalg.inv(rotate @ shear @ scale)
    knots = np.array([(x, y) for y in range(-12, 13, 4) for x in range(-12, 13, 4)])
    sources = []
    for row, column in np.ndindex(28, 28):
        place = np.array([column, row]) - CENTRE
        bumps = np.exp(-((place - knots) ** 2).sum(axis=1) / 2 / 4**2)
        bend = module.elastic * bends @ (bumps / np.linalg.norm(bumps))
        sources.append(back @ place - module.shift * draws[4:] + bend + CENTRE)
    x, y = np.transpose(sources)
    return ndimage.map_coordinates(image, [y, x], order=1, mode="grid-constant").reshape(28, 28)


@pytest.mark.parametrize(
    "strengths",
    [
        {},
        STILL | {"rotation": 180},
        STILL | {"scale": 0.5, "shear": 60},
        STILL | {"elastic": 3},
        {"stroke": 0.8},
    ],
    ids=str,
)
def test_matches_slow_reference(strengths: dict[str, float]) -> None:
    module = Augmentation(**strengths)
    torch.manual_seed(3)
    out = module(to_tensor(NOISE))
    torch.manual_seed(3)
    strokes = torch.rand(4, 1, 1, 1).numpy().ravel() * 2 - 1 if module.stroke else np.zeros(4)
    draws = torch.rand(6, 4).double().numpy().T * 2 - 1
    bends = torch.randn(4, 2, 49).double().numpy()
    for row, image in enumerate(NOISE):
        change = ndimage.grey_dilation if strokes[row] > 0 else ndimage.grey_erosion
        share = abs(strokes[row]) * module.stroke
        image = (1 - share) * image + share * change(image, size=(3, 3), mode="nearest")
        expected = slow(image, module, draws[row], bends[row])
        np.testing.assert_allclose(out[row, 0], expected, rtol=0, atol=1e-4)


def test_spot_goes_to_the_angle_that_was_drawn() -> None:
    spot = np.zeros((1, 28, 28))
    spot[0, 13:15, 22:24] = 1  # 9 pixels to the right of the centre
    torch.manual_seed(0)
    for _ in range(5):
        state = torch.get_rng_state()
        out = Augmentation(**STILL | {"rotation": 90})(to_tensor(spot))[0, 0].numpy()
        torch.set_rng_state(state)
        angle = 90 * (torch.rand(6, 1)[0].item() * 2 - 1)
        down, right = np.array(ndimage.center_of_mass(out)) - CENTRE
        assert np.degrees(np.arctan2(down, right)) == pytest.approx(angle, abs=1)
        assert np.hypot(down, right) == pytest.approx(9, abs=0.2)


def test_bounds_seeds_and_draws() -> None:
    images = to_tensor(NOISE[:1]).repeat(50, 1, 1, 1)
    assert Augmentation(**STILL)(images) is images
    module = Augmentation(stroke=1)
    first, again = (torch.manual_seed(0) and module(images) for _ in range(2))
    assert torch.equal(first, again)
    assert len(torch.unique(first, dim=0)) == 50  # each image has a draw of its own
    for extreme in (torch.zeros(50, 1, 28, 28), torch.ones(50, 1, 28, 28), images.round()):
        out = module(extreme)
        assert out.min() >= 0
        assert out.max() <= 1 + 1e-6  # bilinear weights are rounded
    assert not module.state_dict()  # a checkpoint needs nothing of it


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("bad", [-0.1, 181, float("nan")])
def test_out_of_range(name: str, bad: float) -> None:
    message = refusal(Augmentation, **{name: bad})
    assert re.fullmatch(rf"{name} must be in \[0, [\d.]+\], got {bad}", message)


def test_augmented_bytes_and_describe(folder: Path) -> None:
    images = RNG.integers(0, 256, (5, 28, 28), np.uint8)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    out = augmented(Augmentation(), images, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    expected = Augmentation()(to_tensor(images / 255))[:, 0].numpy() * 255
    assert (out.dtype, out.shape) == (np.uint8, images.shape)
    np.testing.assert_allclose(out, expected, rtol=0, atol=0.501)
    words = ["describe", "--data", "UCIDigits", "--augmentation", "true", "--output", "shown"]
    assert main(words) == 0
    assert (folder / "shown/augmented.png").exists()


def spoiled(**strength: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return 300 images that are spoiled in one way, and how strongly each should be.

    The strengths are drawn as a reader of the docstring would: for a third of the images, up to
    the given one.
    """
    images = to_tensor(NOISE[:1]).repeat(300, 1, 1, 1)
    torch.manual_seed(5)
    out = Augmentation(**STILL | strength)(images)
    torch.manual_seed(5)
    draws = torch.rand(2, 300).double().numpy()
    (most,) = strength.values()
    return out[:, 0].numpy(), most * draws[0] * (draws[1] < 1 / 3)


def check_a_third(out: NDArray[np.float32], strengths: NDArray[np.float64]) -> None:
    """The others stay as they are; a third of 300 is 100, with a standard deviation of 8."""
    assert 70 < (strengths > 0).sum() < 130
    others = out[strengths == 0]
    np.testing.assert_allclose(others, np.broadcast_to(NOISE[0], others.shape), atol=1e-6)
    assert out.min() >= 0
    assert out.max() <= 1


def test_blur_is_that_of_scipy() -> None:
    out, strengths = spoiled(blur=2)
    check_a_third(out, strengths)
    for image, sigma in zip(out, strengths, strict=True):
        if sigma > 0.3:  # a narrow Gaussian is no sum over pixels
            expected = ndimage.gaussian_filter(NOISE[0], sigma, mode="constant", truncate=8)
            inside = np.s_[10:18, 10:18]  # at the border, ours are weighted means
            np.testing.assert_allclose(image[inside], expected[inside], atol=1e-3)


def test_coarse_pixels_are_means_and_what_is_between_them() -> None:
    out, strengths = spoiled(coarse=3)
    assert 70 < (strengths > 0).sum() < 130
    number = np.round(28 / np.maximum(strengths, 1))
    assert set(number) >= {10, 14, 20}
    assert np.ptp(out[number == 28] - NOISE[0], axis=0).max() == 0
    np.testing.assert_allclose(out[number == 28][0], NOISE[0], atol=1e-6)
    for image in out[number == 14]:
        means = NOISE[0].reshape(14, 2, 14, 2).mean(axis=(1, 3))
        places = np.clip((np.arange(28) + 0.5) / 2 - 0.5, 0, 13)
        y, x = np.meshgrid(places, places, indexing="ij")
        expected = ndimage.map_coordinates(means, [y, x], order=1)
        np.testing.assert_allclose(image, expected, atol=1e-5)


def test_edges_and_paler_ink() -> None:
    out, strengths = spoiled(edges=0.9)
    check_a_third(out, strengths)
    for image, strength in zip(out, strengths, strict=True):
        expected = np.clip((NOISE[0] - 0.5) / (1 - strength) + 0.5, 0, 1)
        np.testing.assert_allclose(image, expected, atol=1e-5)
    out, strengths = spoiled(pale=0.7)
    check_a_third(out, strengths)
    np.testing.assert_allclose(out, (1 - strengths)[:, None, None] * NOISE[0], atol=1e-6)


def test_noise_has_the_deviation_that_was_drawn() -> None:
    grey = torch.full((300, 1, 28, 28), 0.5)
    torch.manual_seed(5)
    out = Augmentation(**STILL, noise=0.1)(grey)[:, 0].numpy()
    found = out.std(axis=(1, 2))
    some = found[found > 0]
    assert 70 < len(some) < 130
    assert some.max() == pytest.approx(0.1, abs=0.01)
    assert some.mean() == pytest.approx(0.05, abs=0.01)
    assert np.abs(out.mean(axis=(1, 2)) - 0.5).max() < 0.02
    white = Augmentation(**STILL, noise=1)(torch.ones(300, 1, 28, 28))
    assert (white.min(), white.max()) == (0, 1)
