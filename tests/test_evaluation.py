from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision

from mnist_lightning.evaluation import figures, metrics, report

HISTORY = [
    {"epoch": "0", "step": "4", "train/acc": "", "train/loss": "", "val/acc": "0.55", "val/loss": "1.4"},
    {"epoch": "0", "step": "9", "train/acc": "0.5", "train/loss": "1.5", "val/acc": "0.6", "val/loss": "1.2"},
    {"epoch": "1", "step": "19", "train/acc": "0.7", "train/loss": "0.9", "val/acc": "", "val/loss": ""},
]


def drawn(figure: Figure) -> list[dict[str, list[tuple[float, float]]]]:
    return [
        {str(line.get_label()): [tuple(map(float, point)) for point in line.get_xydata()] for line in axis.lines}
        for axis in figure.axes
    ]


def test_curves_draw_what_was_logged() -> None:
    figure = figures.curves(HISTORY)
    accuracy, loss = drawn(figure)
    assert accuracy == {"training": [(1, 0.5), (2, 0.7)], "validation": [(0.5, 0.55), (1, 0.6)]}
    assert loss == {"training": [(1, 1.5), (2, 0.9)], "validation": [(0.5, 1.4), (1, 1.2)]}
    assert [axis.get_title() for axis in figure.axes] == ["Accuracy", "Loss (cross-entropy, nats)"]
    assert all(axis.get_xlabel() == "Epochs trained" for axis in figure.axes)


def test_curves_of_a_run_that_logged_only_training(tmp_path: Path) -> None:
    figure = figures.curves([{"epoch": "0", "step": "9", "train/loss": "1"}])
    assert drawn(figure) == [{}, {"training": [(1, 1)]}]
    figures.save(figure, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_fit_table() -> None:
    run = {"epochs": 10, "global_step": 15000, "fit_seconds": 21.46, "best_val_acc": 0.97692, "best_epoch": 8}
    assert report.fit_table(run, "lightning_logs/version_0").splitlines() == [
        "Best validation accuracy  97.69% in epoch 8 (the first is 0)",
        "Epochs                    10",
        "Updates                   15,000",
        "Seconds                   21.5",
        "Run folder                lightning_logs/version_0",
    ]
    assert "Best" not in report.fit_table(run | {"best_val_acc": None}, "x")


def test_test_table() -> None:
    confusion = [[0] * 10 for _ in range(10)]
    for digit in range(10):
        confusion[digit][digit] = 90
    confusion[4][9], confusion[4][1], confusion[7][2] = 7, 3, 10
    metrics = {
        "dataset": "MNIST",
        "num_examples": 920,
        "accuracy": 900 / 920,
        "loss": 0.0785,
        "precision_macro": 0.9778,
        "recall_macro": 0.9774,
        "f1_macro": 0.9775,
        "per_digit": [0.9 if digit in (4, 7) else 1.0 for digit in range(10)],
        "confusion_matrix": confusion,
    }
    lines = report.test_table(metrics).splitlines()
    assert lines[0] == "MNIST, 920 test images"
    assert lines[1] == "accuracy 97.83%   loss 0.0785   macro: precision 97.78%   recall 97.74%   F1 97.75%"
    assert lines[4] == "    0      90   100.00%  -"
    assert lines[8] == "    4     100    90.00%  9 (7x)"
    assert lines[11] == "    7     100    90.00%  2 (10x)"


@pytest.mark.parametrize("absent", [(), (3,), (3, 8)])
def test_metrics_of_counts_are_those_of_the_predictions(absent: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([digit for digit in range(10) if digit not in absent], 500)
    digits = np.where(rng.random(500) < 0.7, labels, rng.integers(0, 10, 500))
    result = metrics.from_confusion(confusion_matrix(labels, digits, labels=range(10)))
    expected = precision_recall_fscore_support(labels, digits, labels=range(10), zero_division=0)
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, digits), abs=1e-12)
    macro = [result[f"{name}_macro"] for name in ("precision", "recall", "f1")]
    assert macro == pytest.approx([values.mean() for values in expected[:3]], abs=1e-12)
    assert result["per_digit"] == pytest.approx(expected[1], abs=1e-12)
    if not absent:  # torchmetrics leaves absent digits out of the mean, scikit-learn counts them as 0
        tensors = torch.from_numpy(digits), torch.from_numpy(labels)
        assert macro[0] == pytest.approx(multiclass_precision(*tensors, num_classes=10).item(), abs=1e-6)
        assert macro[2] == pytest.approx(multiclass_f1_score(*tensors, num_classes=10).item(), abs=1e-6)
