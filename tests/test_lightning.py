"""docs/lightning.md: its programs run as they stand there, with a small data set for MNIST."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from torch.utils.data import Dataset

from mnist_lightning import MLP, DigitClassifier, UCIDigits
from mnist_lightning.training.run import Run

PAGE = (ROOT / "docs" / "lightning.md").read_text(encoding="utf-8")
PLAIN, WITH_TRAINER, WITH_FIT = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


class Digits(Dataset[Any]):
    """What torchvision's MNIST is, with scikit-learn's digits."""

    def __init__(self, root: str, download: bool, transform: Any) -> None:
        data = UCIDigits(val_fraction=0)
        data.setup("fit")
        assert data.train_set
        (self.images, self.labels), self.transform = data.train_set.arrays(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        # torchvision's images are PIL's, of which to_tensor makes (1, 28, 28) in [0, 1], as here.
        return self.transform(self.images[row][..., None]), int(self.labels[row])


def test_the_thirty_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", Digits)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(PLAIN.replace("max_epochs=10", "max_epochs=3"), names)
    model, trainer = names["model"], names["trainer"]
    own = [tuple(weight.shape) for weight in MLP().parameters()]
    assert [tuple(weight.shape) for weight in model.parameters()] == own
    assert trainer.global_step == 3 * -(-len(names["train"]) // 32)
    images = torch.stack([image for image, _ in names["val"]])
    labels = np.array([label for _, label in names["val"]])
    with torch.no_grad():
        right = (model.eval().net(images).argmax(dim=1).numpy() == labels).mean()
    assert trainer.callback_metrics["val/acc"].item() == pytest.approx(right)
    assert right > 0.8


def test_what_ours_adds_runs_too(folder: Path) -> None:
    names: dict[str, Any] = {}
    for code in (WITH_TRAINER, WITH_FIT):
        exec(code.replace("MNIST", "UCIDigits"), names)
    assert isinstance(names["trainer"], L.Trainer)
    assert names["trainer"].callback_metrics["test/acc"].item() > 0.5
    assert isinstance(names["run"], Run)
    assert names["run"].record["epochs"] == 1
    assert names["run"].best_val_acc > 0.5


def test_the_files_that_it_names_are_there() -> None:
    links = re.findall(r"\]\((\.\./[\w/.]+)\)", PAGE)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    methods = re.findall(r"`DigitClassifier\.(\w+)`", PAGE)
    assert [name for name in methods if not hasattr(DigitClassifier, name)] == []
    assert len(methods) == 2
