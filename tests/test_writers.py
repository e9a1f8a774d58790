"""What test, predict and ValidationFigures leave: the report, the submission, the images in TensorBoard."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lightning import UCIDigits
from mnist_lightning.cli import main
from mnist_lightning.evaluation import figures
from mnist_lightning.loggers import read_history

pytestmark = pytest.mark.usefixtures("folder")

FIT = ["fit", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]
RUN = Path("lightning_logs/version_0")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def images_logged(run: Path) -> dict[str, list[int]]:
    """The steps of every image in TensorBoard's events, by tag."""
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    return {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}


def test_the_report_is_scikit_learns_on_the_predictions_that_predict_writes() -> None:
    assert main([*FIT, "--data", "UCIDigits"]) == 0
    assert main(["predict"]) == 0
    assert main(["test"]) == 0
    rows = read_csv(RUN / "predictions.csv")
    probabilities = np.array([[float(row[f"p{digit}"]) for digit in range(10)] for row in rows])
    digits = np.array([int(row["digit"]) for row in rows])
    _, labels = UCIDigits().load("test")
    metrics = json.loads((RUN / "report/metrics.json").read_text())
    expected = classification_report(labels, digits, output_dict=True)
    assert metrics["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
    for name, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert metrics[f"{name}_macro"] == pytest.approx(expected["macro avg"][theirs], abs=1e-6)
        per_digit = [expected[str(digit)][theirs] for digit in range(10)]
        assert metrics[f"{name}_per_digit"] == pytest.approx(per_digit, abs=1e-6)
    assert metrics["confusion_matrix"] == confusion_matrix(labels, digits).tolist()
    auroc = roc_auc_score(labels, probabilities / probabilities.sum(axis=1, keepdims=True), multi_class="ovr")
    assert metrics["auroc_macro"] == pytest.approx(auroc, abs=1e-6)


def test_tensorboard_shows_the_reports_figures() -> None:
    assert main([*FIT, "--data", "UCIDigits"]) == 0
    assert images_logged(RUN) == {}
    assert main(["test"]) == 0
    drawn = {path.stem for path in (RUN / "report").glob("*.png")}
    assert set(images_logged(RUN)) == {f"test/{name}" for name in drawn}


@pytest.mark.filterwarnings("ignore:Encountered `nan`")  # torchmetrics on the loss
def test_a_diverged_network_has_a_report_too() -> None:
    assert main([*FIT, "--data", "UCIDigits"]) == 0
    path = RUN / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for weight in checkpoint["state_dict"].values():
        weight.fill_(float("nan"))
    torch.save(checkpoint, path)
    assert main(["test"]) == 0
    text = (RUN / "report/metrics.json").read_text()
    metrics = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    assert (metrics["loss"], metrics["auroc_macro"], metrics["ece"]) == (None, None, None)
    assert np.array(metrics["confusion_matrix"])[:, 0].sum() == 360  # the first of equals


def test_validation_figures_show_the_epochs_confusion_and_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Any]] = {"confusion_counts": [], "misclassified": []}
    for name, calls in seen.items():
        draw = getattr(figures, name)
        monkeypatch.setattr(figures, name, lambda *args, draw=draw, calls=calls: calls.append(args) or draw(*args))
    assert main([*FIT, "--data", "UCIDigits", "--trainer.callbacks+=ValidationFigures"]) == 0
    history = read_history(RUN / "metrics.csv")
    assert images_logged(RUN) == {"val/confusion": [36, 72], "val/misclassified": [36, 72]}
    data = UCIDigits()
    data.setup("fit")
    assert data.val_set is not None
    images, labels = (tensor[data.val_set.rows].numpy() for tensor in data.val_set.tensors)
    for row, (confusion,), (shown, true, probabilities) in zip(history, *seen.values(), strict=True):
        np.testing.assert_array_equal(shown, images)
        np.testing.assert_array_equal(true, labels)
        np.testing.assert_array_equal(confusion, confusion_matrix(labels, probabilities.argmax(axis=1)))
        assert np.trace(confusion) / 287 == pytest.approx(float(row["val/acc"]))


def test_validation_figures_every_other_epoch() -> None:
    given = '[{"class_path": "ValidationFigures", "init_args": {"every_n_epochs": 2}}]'
    assert main([*FIT, "--data", "UCIDigits", "--trainer.callbacks", given, "--trainer.max_epochs", "3"]) == 0
    assert images_logged(RUN) == {"val/confusion": [72], "val/misclassified": [72]}


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Kaggle's files of 200 labelled and 60 other images; a bright row says the digit."""
    rng = np.random.default_rng(0)
    header = ",".join(f"pixel{i}" for i in range(784))
    lines: dict[str, list[str]] = {"train": [f"label,{header}"], "test": [header]}
    for name, number in (("train", 200), ("test", 60)):
        for digit in rng.integers(0, 10, number):
            image = rng.integers(0, 100, (28, 28))
            image[2 * digit] = 255
            label = [digit] if name == "train" else []
            lines[name].append(",".join(map(str, [*label, *image.ravel()])))
        (tmp_path / f"{name}.csv").write_text("\n".join(lines[name]) + "\n")
    return tmp_path


def test_kaggle_from_fit_to_submission(kaggle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--data", "Kaggle", "--data.data_dir", str(kaggle)]) == 0
    out = capsys.readouterr().out
    assert "Kaggle: 160 training and 40 validation images" in out
    assert out.splitlines()[-1] == "Next: python -m mnist_lightning predict"
    before = set(RUN.iterdir())
    assert main(["test"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines() == [
        "python -m mnist_lightning: error: Kaggle has no labelled test set to measure on: use validate or predict"
    ]
    assert set(RUN.iterdir()) == before
    assert main(["predict", "--data.eval_batch_size", "7"]) == 0
    predictions, submission = read_csv(RUN / "predictions.csv"), read_csv(RUN / "submission.csv")
    assert [(row["ImageId"], row["Label"]) for row in submission] == [
        (str(index + 1), row["digit"]) for index, row in enumerate(predictions)
    ]
    assert len(submission) == 60
    assert (RUN / "submission.csv").read_text().startswith("ImageId,Label\n1,")
    assert f"{RUN}/submission.csv" in capsys.readouterr().out
    assert main(["predict", "--data", "UCIDigits"]) == 0
    assert len(read_csv(RUN / "predictions.csv")) == 360
    assert not (RUN / "submission.csv").exists()  # it belonged to the predictions before


def test_a_report_that_cannot_be_written_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--data", "UCIDigits"]) == 0
    (RUN / "report").touch()
    capsys.readouterr()
    assert main(["test"]) == 2
    assert capsys.readouterr().err.splitlines() == [f"python -m mnist_lightning: error: {RUN}/report: File exists"]


def test_the_report_is_named_after_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*FIT, "--data", "UCIDigits"]) == 0
    monkeypatch.chdir(RUN)
    assert main(["test", "--ckpt_path", "."]) == 0
    assert "<h1>UCIDigits · version_0</h1>" in Path("report/index.html").read_text()
