"""The networks: sizes, settings, ensembles, test-time augmentation, the table of layers."""

import json
import math
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusal
from numpy.typing import NDArray
from scipy.special import softmax
from test_resume import Noise
from torch import nn
from torchvision.transforms import v2

from mnist_lightning import (
    CNN,
    MLP,
    Augmentation,
    DigitClassifier,
    Ensemble,
    FastCNN,
    Run,
    UCIDigits,
    fit,
    load_run,
)
from mnist_lightning.checkpoints import from_settings, to_settings
from mnist_lightning.cli.main import main
from mnist_lightning.inference import activations, classify, layer_table, saliency
from mnist_lightning.networks import TestTimeAugmentation

BYTES, LABELS = UCIDigits().load("test")
FLOATS = torch.from_numpy(BYTES).unsqueeze(1) / 255
NETS: list[nn.Module] = [
    CNN(2, 0.1),
    FastCNN(2, 0.1),
    MLP([8, 4], 0.0, "GELU", batch_norm=True),
    MLP([]),
]


def train(net: nn.Module, log_dir: Path, augmentation: nn.Module | None = None) -> Run:
    data = UCIDigits(batch_size=100, augmentation=augmentation)
    return fit(DigitClassifier(net), data, log_dir=log_dir, max_epochs=1, enable_progress_bar=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A CNN with an augmentation of its own settings, and an MLP."""
    torch.manual_seed(0)
    logs = tmp_path_factory.mktemp("work") / "lightning_logs"
    return train(CNN(2), logs, Augmentation(shift=5)), train(MLP([8]), logs)


@torch.no_grad()
def probabilities(net: nn.Module, images: torch.Tensor = FLOATS) -> NDArray[np.float64]:
    return softmax(net.eval()(images).numpy().astype(np.float64), axis=1)


def test_parameters() -> None:
    norms = sum(each.numel() for each in MLP(batch_norm=True).parameters()) - 109_386
    assert norms == 2 * (128 + 64)
    keys = [f"layers.{number}.{kind}" for number in (1, 4, 7) for kind in ("weight", "bias")]
    assert list(MLP().state_dict()) == keys  # of checkpoints that users have


REFUSED: dict[str, Any] = {
    "width must be at least 1, got 0": lambda: CNN(0),
    "dropout must be in [0, 1), got 1": lambda: CNN(dropout=1),
    "width must be at least 1, got -1": lambda: FastCNN(-1),
    "dropout must be in [0, 1), got 2": lambda: FastCNN(dropout=2),
    "hidden_sizes must each be at least 1, got [8, 0]": lambda: MLP([8, 0]),
    "an ensemble needs at least one network, got none": lambda: Ensemble([]),
    "the number of views (tta) must not be negative, got -1": (
        lambda: TestTimeAugmentation(MLP(), Augmentation(), -1)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    assert refusal(REFUSED[message]) == message


def test_round_trip() -> None:
    for net in [*NETS, Ensemble(NETS)]:
        assert str(from_settings(to_settings(net))) == str(net)


def assert_near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_ensemble(runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    mean = np.mean([probabilities(net) for net in NETS], axis=0)
    assert_near(Ensemble(NETS).eval()(FLOATS).exp().detach(), mean)
    mean = np.mean([probabilities(run.model.net) for run in runs], axis=0)
    assert_near(probabilities(Ensemble([runs[0], runs[1].model.net])), mean)
    monkeypatch.chdir(runs[0].folder.parent.parent)
    folders = ["lightning_logs/version_0", "lightning_logs/version_1"]
    assert_near(load_run(folders).predict(BYTES).probabilities, mean)
    assert main(["test", "--ckpt_path", *folders]) == 0
    report = Path("lightning_logs/version_0+version_1.results/report")
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["accuracy"] == pytest.approx((mean.argmax(axis=1) == LABELS).mean(), abs=1e-12)
    assert metrics["loss"] == pytest.approx(-np.log(mean[range(360), LABELS]).mean(), rel=1e-5)


def views_alone(augment: Any, images: torch.Tensor, seed: int) -> torch.Tensor:
    """A view of each image, drawn with the same seed of all generators, one image at a time."""
    views = []
    for image in images:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        views.append(augment(image[None]))
    return torch.cat(views)


def random_states() -> list[Any]:
    return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]  # noqa: NPY002


def test_views(runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own augmentation makes the views, which are averaged with the image itself."""
    run = runs[0]
    same = TestTimeAugmentation(run.model.net, Augmentation(), 0)
    assert_near(probabilities(same), probabilities(run.model.net))
    views = [FLOATS, *(views_alone(Augmentation(shift=5), FLOATS, seed) for seed in range(3))]
    mean = np.mean([probabilities(run.model.net, view) for view in views], axis=0)
    loaded = load_run(run.folder, tta=3, data=UCIDigits(eval_batch_size=7))
    for answers in (loaded.predict(), loaded.predict(BYTES)):
        assert_near(answers.probabilities, mean)
    monkeypatch.chdir(run.folder.parent.parent)
    for verb in ("predict", "test"):
        assert main([verb, "--ckpt_path", str(run.folder), "--tta", "3"]) == 0
    table = np.loadtxt(run.folder / "predictions.csv", delimiter=",", skiprows=1)
    assert_near(table[:, 3:], mean)
    assert "3 random views" in (run.folder / "report_tta3/index.html").read_text()


class Mirror(nn.Module):
    """An augmentation in NumPy, which vmap refuses."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = np.roll(images.numpy(), np.random.randint(-3, 4), axis=3)  # noqa: NPY002
        return torch.from_numpy(pixels[..., ::-1].copy())


class Bright(nn.Module):
    """An augmentation that looks at the image, which vmap refuses; with Python's random numbers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.mean() > 0.1:
            return images.roll(random.randint(-3, 3), 2)
        return images * torch.rand(())


AUGMENTATIONS = [
    Augmentation(stroke=0.5),
    Noise(),
    v2.RandomAffine(15, (0.1, 0.1)),
    v2.RandomErasing(1.0),
    Mirror(),
    Bright(),
]


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda each: type(each).__name__)
def test_views_do_not_depend_on_the_neighbours(augment: nn.Module) -> None:
    """Also when several threads classify. The random states stay as they were."""
    torch.manual_seed(0)
    net, few = MLP([8]), FLOATS[:40]
    tta = TestTimeAugmentation(net, augment, 2)
    views = [few, views_alone(augment, few, 0), views_alone(augment, few, 1)]
    mean = np.mean([probabilities(net, view) for view in views], axis=0)
    states = random_states()
    assert_near(probabilities(tta, few), mean)
    assert random_states() == states
    assert_near(probabilities(tta, few[:3]), mean[:3])
    assert_near(probabilities(tta, few.flip(0)), mean[::-1])
    with ThreadPoolExecutor(3) as threads:
        for answers in threads.map(lambda _: probabilities(tta, few), range(15)):
            assert_near(answers, mean)


def test_views_by_an_augmentation_without_settings(tmp_path: Path) -> None:
    """config.yaml cannot say how to make it, so the default one makes the views."""
    run = train(MLP([8]), tmp_path, Noise())
    expected = probabilities(TestTimeAugmentation(run.model.net, Augmentation(), 2))
    assert_near(load_run(run.folder, tta=2).predict(BYTES).probabilities, expected)


def test_layer_table() -> None:
    net = MLP()
    net.layers[3].eval()
    modes, before = [module.training for module in net.modules()], torch.get_rng_state()
    net.layers[1].requires_grad_(False)
    assert layer_table(net).splitlines() == [
        "name      layer    output  parameters",
        "layers.0  Flatten  784              0",
        "layers.1  Linear   128        100,480  frozen",
        "layers.2  ReLU     128              0",
        "layers.3  Dropout  128              0",
        "layers.4  Linear   64           8,256",
        "layers.5  ReLU     64               0",
        "layers.6  Dropout  64               0",
        "layers.7  Linear   10             650",
        "total                         109,386  0.44 MB, 8,906 trained, 100,480 frozen",
    ]
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)


OLD = {
    "mnist_lightning.MLP": "mnist_lightning.models.mlp.MLP",
    "mnist_lightning.UCIDigits": "mnist_lightning.data.torchvision.UCIDigits",
}


def test_files_of_earlier_versions(first: Path) -> None:
    """They name modules that are gone. The run is tested and resumed, and its files are loaded."""
    expected = load_run(first).predict(BYTES).probabilities
    config = (first / "config.yaml").read_text()
    for name, old in OLD.items():
        config = config.replace(f"class_path: {name}\n", f"class_path: {old}\n")
    assert all(old in config for old in OLD.values())
    (first / "config.yaml").write_text(config)
    for file in (first / "checkpoints").iterdir():
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["hyper_parameters"]["net"]["class_path"] = OLD["mnist_lightning.MLP"]
        torch.save(checkpoint, file)
    for run in (load_run(first), load_run(shutil.copy(first / "checkpoints/best.ckpt", "a.ckpt"))):
        np.testing.assert_array_equal(run.predict(BYTES).probabilities, expected)
    assert main(["test", "--ckpt_path", str(first)]) == 0
    resumed = fit(DigitClassifier(MLP()), UCIDigits(), resume=first, max_epochs=3)
    assert resumed.record["epochs"] == 3
    assert main(["fit", "--ckpt_path", str(first), "--epochs", "4"]) == 0
    assert load_run(first).record["epochs"] == 4
    assert not any(old in (first / "config.yaml").read_text() for old in OLD.values())


def test_saliency_is_what_a_black_square_takes_away() -> None:
    torch.manual_seed(0)
    net = MLP([8])
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    found = saliency(net, image, digit=3)

    def odds(pixels: np.ndarray) -> float:
        share = float(classify(net, pixels[None])[0, 3])
        return math.log(share / (1 - share))

    for row, column in ((0, 0), (14, 9), (27, 20)):
        changed = image.copy()
        changed[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = 0
        assert found[row, column] == pytest.approx(odds(image) - odds(changed), abs=1e-4)


def test_activations_are_what_each_layer_gives() -> None:
    torch.manual_seed(0)
    net = MLP([8]).train()
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    (first, hidden), (last, logits) = activations(net, image)
    assert (first, last) == ("Linear", "Linear")
    assert net.training
    (one, two) = (layer for layer in net.modules() if isinstance(layer, nn.Linear))
    sums = one.weight.numpy(force=True) @ (image.ravel() / 255) + one.bias.numpy(force=True)
    expected = np.maximum(sums, 0)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    by_hand = two.weight.numpy(force=True) @ expected + two.bias.numpy(force=True)
    np.testing.assert_allclose(logits, by_hand, atol=1e-5)


def test_activations_are_not_those_of_another_thread() -> None:
    torch.manual_seed(0)
    net = MLP([8]).eval()
    image, other = np.zeros((28, 28), np.uint8), np.full((1, 28, 28), 255, np.uint8)
    alone = activations(net, image)
    stop = threading.Event()

    def classify_until_then() -> None:
        while not stop.is_set():
            classify(net, other)

    thread = threading.Thread(target=classify_until_then)
    thread.start()
    try:
        for _ in range(30):
            for (name, values), (wanted, numbers) in zip(
                activations(net, image), alone, strict=True
            ):
                assert name == wanted
                np.testing.assert_array_equal(values, numbers)
    finally:
        stop.set()
        thread.join()
