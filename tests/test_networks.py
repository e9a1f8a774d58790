"""The networks beyond the plain MLP: sizes, settings, ensembles, test-time augmentation, the table of layers."""

import json
import random
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from test_resume import Noise
from torch import nn
from torchvision.transforms import v2

from mnist_lightning import CNN, MLP, Augmentation, DigitClassifier, Ensemble, UCIDigits, fit, load_run
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.models.ensemble import TestTimeAugmentation
from mnist_lightning.models.layers import layer_table
from mnist_lightning.settings import from_settings, to_settings

BYTES, LABELS = UCIDigits().load("test")
FLOATS = torch.from_numpy(BYTES).unsqueeze(1) / 255
NETS: list[nn.Module] = [CNN(2, 0.1), MLP([8, 4], 0.0, "GELU", batch_norm=True), MLP([])]


def train(net: nn.Module, folder: Path, name: str, augmentation: nn.Module | None = None) -> Any:
    data = UCIDigits(batch_size=100, augmentation=augmentation)
    return fit(DigitClassifier(net), data, log_dir=folder, name=name, max_epochs=1, enable_progress_bar=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A CNN with an augmentation of its own settings, and an MLP."""
    torch.manual_seed(0)
    logs = tmp_path_factory.mktemp("work") / "lightning_logs"
    return train(CNN(2), logs, "a", augmentation=Augmentation(shift=5)), train(MLP([8]), logs, "b")


@torch.no_grad()
def probabilities(net: nn.Module, images: torch.Tensor = FLOATS) -> NDArray[np.float64]:
    return softmax(net.eval()(images).numpy().astype(np.float64), axis=1)


def test_parameters() -> None:
    def count(net: nn.Module) -> int:
        return sum(parameter.numel() for parameter in net.parameters())

    assert (count(CNN()), count(CNN(24)), count(MLP())) == (288_170, 162_562, 109_386)
    assert count(MLP(batch_norm=True)) == 109_386 + 2 * (128 + 64)
    keys = [f"layers.{number}.{kind}" for number in (1, 4, 7) for kind in ("weight", "bias")]
    assert list(MLP().state_dict()) == keys  # of checkpoints that users have


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CNN(0), "width must be at least 1, got 0"),
        (lambda: CNN(dropout=1), r"dropout must be in \[0, 1\), got 1"),
        (lambda: MLP([8, 0]), r"hidden_sizes must each be at least 1, got \[8, 0\]"),
        (lambda: Ensemble([]), "an ensemble needs at least one network, got none"),
        (lambda: TestTimeAugmentation(MLP(), Augmentation(), -1), r"\(tta\) must not be negative, got -1"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("net", NETS, ids=lambda net: type(net).__name__)
def test_round_trip(net: nn.Module, tmp_path: Path) -> None:
    """A network is made again from its settings; a checkpoint alone, and a run folder, give the same outputs."""
    assert str(from_settings(to_settings(net))) == str(net)
    run = train(net, tmp_path, "a")
    for other in (DigitClassifier.load_from_checkpoint(run.checkpoint), load_run(run.folder).model):
        np.testing.assert_array_equal(probabilities(other.net), probabilities(run.model.net))


def test_ensemble(runs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mean = np.mean([probabilities(net) for net in NETS], axis=0)
    np.testing.assert_allclose(Ensemble(NETS).eval()(FLOATS).exp().detach(), mean, rtol=0, atol=1e-6)
    a, b = runs
    mean = np.mean([probabilities(run.model.net) for run in runs], axis=0)
    np.testing.assert_allclose(probabilities(Ensemble([a, b.model.net])), mean, rtol=0, atol=1e-6)
    monkeypatch.chdir(a.folder.parent.parent)
    both = load_run([a.folder, b.folder], log_dir="lightning_logs")
    np.testing.assert_allclose(both.predict(BYTES).probabilities, mean, rtol=0, atol=1e-6)
    assert main(["test", "--ckpt_path", "lightning_logs/a", "lightning_logs/b"]) == 0
    metrics = json.loads(Path("lightning_logs/a+b.results/report/metrics.json").read_text())
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


def test_views(runs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The views of the run's own augmentation, each drawn with a seed of its own for images alone, are averaged."""
    run = runs[0]
    np.testing.assert_allclose(
        probabilities(TestTimeAugmentation(run.model.net, Augmentation(), 0)), probabilities(run.model.net), atol=1e-6
    )
    views = [FLOATS, *(views_alone(Augmentation(shift=5), FLOATS, seed) for seed in range(3))]
    mean = np.mean([probabilities(run.model.net, view) for view in views], axis=0)
    net = load_run(run.folder, tta=3).model.net
    before = torch.get_rng_state()
    first, again = (probabilities(net) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, mean, rtol=0, atol=1e-6)
    monkeypatch.chdir(run.folder.parent.parent)
    for verb in ("predict", "test"):
        assert main([verb, "--ckpt_path", "lightning_logs/a", "--tta", "3"]) == 0
    table = np.loadtxt(run.folder / "predictions.csv", delimiter=",", skiprows=1)[:, 3:]
    np.testing.assert_allclose(table, mean, rtol=0, atol=1e-6)
    assert "3 random views" in (run.folder / "report_tta3/index.html").read_text()


class Mirror(nn.Module):
    """An augmentation in NumPy, which vmap refuses."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = np.roll(images.numpy(), np.random.randint(-3, 4), axis=3)  # noqa: NPY002
        return torch.from_numpy(pixels[..., ::-1].copy())


class Bright(nn.Module):
    """An augmentation that looks at the image, which vmap refuses; with Python's random numbers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.roll(random.randint(-3, 3), 2) if images.mean() > 0.1 else images * torch.rand(())


AUGMENTATIONS = [Augmentation(stroke=0.5), Noise(), v2.RandomAffine(15, (0.1, 0.1)), v2.RandomErasing(1.0)]


@pytest.mark.parametrize("augment", [*AUGMENTATIONS, Mirror(), Bright()], ids=lambda each: type(each).__name__)
def test_views_do_not_depend_on_the_neighbours(augment: nn.Module) -> None:
    torch.manual_seed(0)
    net, few = MLP([8]), FLOATS[:40]
    tta = TestTimeAugmentation(net, augment, 2).eval()
    states = random_states()
    whole = probabilities(tta, few)
    assert random_states() == states
    np.testing.assert_allclose(probabilities(tta, few[:3]), whole[:3], rtol=0, atol=1e-6)
    np.testing.assert_allclose(probabilities(tta, few.flip(0)), whole[::-1], rtol=0, atol=1e-6)
    mean = np.mean([probabilities(net, few), *(probabilities(net, views_alone(augment, few, i)) for i in (0, 1))], 0)
    np.testing.assert_allclose(whole, mean, rtol=0, atol=1e-6)
    answers: list[Any] = []
    threads = [Thread(target=lambda: answers.extend(probabilities(tta, few) for _ in range(5))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(answers, np.broadcast_to(whole, (15, 40, 10)), rtol=0, atol=1e-6)


@pytest.mark.long
def test_views_in_all_verbs(runs: tuple[Any, Any], tmp_path: Path) -> None:
    """Neither eval_batch_size nor the number of images that are given changes an answer."""
    run = runs[0]
    expected = load_run(run.folder, tta=2).predict(BYTES).probabilities
    for size in (7, 360):
        other = load_run(run.folder, tta=2, data=UCIDigits(eval_batch_size=size))
        np.testing.assert_allclose(other.predict().probabilities, expected, rtol=0, atol=1e-6)
        loss = -np.log(expected.astype(np.float64)[range(360), LABELS]).mean()
        assert other.test(logger=False)["loss"] == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(other.predict(BYTES[5:8]).probabilities, expected[5:8], rtol=0, atol=1e-6)


def test_views_by_an_augmentation_without_settings(tmp_path: Path) -> None:
    """config.yaml cannot say how to make it, so the default one makes the views."""
    run = train(MLP([8]), tmp_path, "a", augmentation=Noise())
    expected = probabilities(TestTimeAugmentation(run.model.net, Augmentation(), 2))
    shown = load_run(run.folder, tta=2).predict(BYTES).probabilities
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-6)


def test_layer_table() -> None:
    net = MLP()
    net.layers[3].eval()
    modes, before = [module.training for module in net.modules()], torch.get_rng_state()
    table = [line.split() for line in layer_table(net).splitlines()]
    assert [" ".join(row) for row in table] == [
        *("layer output parameters", "Flatten 784 0", "Linear 128 100,480", "Linear 64 8,256", "Linear 10 650")
    ]
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in net.modules())
