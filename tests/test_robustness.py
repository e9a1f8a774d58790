import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats

from mnist_lightning.report import figures_accuracy, results
from mnist_lightning.report.robustness import CALLS, CHANGES, robustness
from mnist_lightning.report.run_report import write_report

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
BLOBS = np.pad(
    ndimage.uniform_filter(IMAGES[:, 6:-6, 6:-6], (0, 5, 5), mode="constant"),
    ((0, 0), (6, 6), (6, 6)),
)
BARS = np.zeros((10, 28, 28), np.uint8)  # digit d is a white column at x = 9 + d
BARS[np.arange(10), :, np.arange(10) + 9] = 255
ACCURACIES = {
    kind: {f"{strength:g}": 0.5 for strength in strengths}
    for kind, (_, strengths) in CHANGES.items()
}


def brightest_column(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.eye(10)[(images.sum(axis=1, dtype=int).argmax(axis=1) - 9) % 10]


def reference(kind: str, image: NDArray[np.uint8], strength: float) -> list[NDArray[Any]]:
    """SciPy's version of a change, in the same order of directions."""
    if kind == "shift":
        places = [
            (strength * (1 - y), strength * (1 - x))
            for y, x in np.ndindex(3, 3)
            if (y, x) != (1, 1)
        ]
        return [ndimage.shift(image, place, order=0) for place in places]
    image = image.astype(float)
    if kind == "rotation":
        return [
            ndimage.rotate(image, angle, reshape=False, order=1) for angle in (strength, -strength)
        ]
    if kind == "blur":
        return [ndimage.gaussian_filter(image, strength, mode="constant", truncate=3)]
    change = ndimage.minimum_filter if strength < 0 else ndimage.maximum_filter
    kernels = {1: np.ones((2, 2)), 2: ndimage.generate_binary_structure(2, 1)}
    return [change(image, footprint=kernels[abs(strength)], mode="nearest")]


@pytest.mark.parametrize(
    ("kind", "images", "tolerance"),
    [("shift", IMAGES, 0), ("rotation", BLOBS, 3), ("blur", IMAGES, 1.5), ("stroke", IMAGES, 0)],
)
def test_changes_match_scipy(kind: str, images: NDArray[np.uint8], tolerance: float) -> None:
    change, strengths = CHANGES[kind]
    for strength in strengths:
        for row, image in enumerate(images):
            for ours, theirs in zip(
                change(images, strength), reference(kind, image, strength), strict=True
            ):
                np.testing.assert_allclose(ours[row], theirs, rtol=0, atol=tolerance)
                assert ours.dtype == np.uint8


@pytest.mark.parametrize("strength", CHANGES["noise"][1])
def test_noise_is_gaussian_clipped_and_always_the_same(strength: float) -> None:
    grey = np.full((100, 28, 28), 128, np.uint8)
    (noisy,), (again,) = (CHANGES["noise"][0](grey, strength) for _ in range(2))
    assert (noisy == again).all()
    for level in (0, 50, 127, 200, 254):
        assert (noisy <= level).mean() == pytest.approx(
            stats.norm.cdf(level + 0.5, 128, 255 * strength), abs=0.01
        )


def test_robustness_of_a_network_that_sees_the_brightest_column() -> None:
    calls = []

    def classify(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        calls.append(len(images))
        return brightest_column(images)

    result = robustness(classify, BARS, np.arange(10))
    assert calls == [10] * CALLS
    assert {kind: tuple(map(float, result[kind])) for kind in result} == {
        kind: CHANGES[kind][1] for kind in CHANGES
    }
    assert set(result["shift"].values()) == {0.25}  # up and down, of eight directions
    assert set(result["noise"].values()) == set(result["blur"].values()) == {1}
    # A blank image is a 1. The first of two equal columns is the digit's, the first of three is the
    # digit before.
    assert result["stroke"] == {"-2": 0.1, "-1": 0.1, "1": 1, "2": 0}
    diverged = robustness(lambda images: np.full((len(images), 10), np.nan), BARS, np.arange(10))
    assert {accuracy for kind in diverged.values() for accuracy in kind.values()} <= {
        0.1,
        np.mean([0.1] * 8),
    }


def test_figure() -> None:
    axes = figures_accuracy.robustness(ACCURACIES | {"shift": {"1": 0.654, "2": 0.05}}, 0.98).axes
    assert axes[0].lines[1].get_xydata().tolist() == [[0, 0.98], [1, 0.654], [2, 0.05]]
    assert [label.get_text() for label in axes[0].texts] == ["65.4", "5.0"]
    assert axes[4].lines[1].get_xydata().tolist() == [
        [-2, 0.5],
        [-1, 0.5],
        [0, 0.98],
        [1, 0.5],
        [2, 0.5],
    ]


@pytest.mark.filterwarnings("error")
def test_report_shows_robustness_only_if_it_was_measured(folder: Path) -> None:
    test = "run", "MNIST", (BARS, np.arange(10), brightest_column(BARS)), 0.1, [], {}
    for measured in (ACCURACIES, None):
        metrics, pngs = write_report(folder, *test, robustness=measured)
        assert json.loads((folder / "metrics.json").read_text()).get("robustness") == measured
        shown = {
            "robustness" in pngs,
            (folder / "robustness.png").exists(),
            "Robustness" in (folder / "index.html").read_text(),
            "changed images" in results.metrics_text(metrics),
        }
        assert shown == {measured is not None}
    assert str(results.robustness_table(ACCURACIES)).splitlines()[::2] == [
        "Accuracy on changed images",
        "shift               1 px  50.0%    2 px  50.0%    3 px  50.0%    4 px  50.0%",
        "noise                0.1  50.0%     0.2  50.0%     0.3  50.0%     0.4  50.0%",
        "stroke             -2 px  50.0%   -1 px  50.0%    1 px  50.0%    2 px  50.0%",
    ]
