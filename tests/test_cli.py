"""The command line, from the arguments to the files and the exit code."""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import snapshot
from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score
from test_runs import bad_checkpoint
from torchmetrics.functional.classification import multiclass_calibration_error

from mnist_lightning import MLP, DigitClassifier, UCIDigits
from mnist_lightning.cli import main
from mnist_lightning.loggers import read_history

pytestmark = pytest.mark.usefixtures("folder")

FIT = ["fit", "--data", "UCIDigits", "--trainer.accelerator", "cpu"]
RUN = Path("lightning_logs/version_0")
FILES_OF_FIT = {
    "config.yaml",
    "run.json",
    "metrics.csv",
    "curves.png",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
}
FIGURES = (
    *("per_digit", "confusion_counts", "confusion_percent", "confused_pairs", "misclassified", "samples"),
    *("confidence_histogram", "reliability_diagram", "roc", "precision_recall", "curves"),
)
FILES_OF_TEST = {"report/index.html", "report/metrics.json", *(f"report/{name}.png" for name in FIGURES)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of four epochs."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        assert main([*FIT, "--trainer.max_epochs", "4", "--data.batch_size", "64"]) == 0
    return folder


@pytest.fixture
def run(trained: Path, folder: Path) -> Path:
    """A copy of that run to work on, the newest and only one."""
    shutil.copytree(trained / "lightning_logs", folder / "lightning_logs")
    return RUN


def files_of(run: Path) -> set[str]:
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("events.out.tfevents")}
    assert events
    return found - events


def plain_predictions(checkpoint: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of UCIDigits' test images, by the network alone."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    net = MLP().eval()
    net.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
    images, labels = UCIDigits().load("test")
    with torch.no_grad():
        return labels, net(torch.from_numpy(images).unsqueeze(1) / 255).softmax(dim=1).numpy()


def test_fit_writes_the_run_folder_and_says_what_next(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert files_of(run) == FILES_OF_FIT
    record = json.loads((run / "run.json").read_text())
    history = read_history(run / "metrics.csv")
    best = max(history, key=lambda row: float(row["val/acc"]))
    assert {name: record[name] for name in ("verb", "dataset", "seed", "device", "epochs", "global_step")} == {
        "verb": "fit",
        "dataset": "UCIDigits",
        "seed": 42,
        "device": "cpu",
        "epochs": 4,
        "global_step": 4 * 18,  # 1,150 images in batches of 64
    }
    assert record["num_parameters"] == 109_386
    assert record["best_val_acc"] == pytest.approx(float(best["val/acc"]))
    assert record["best_epoch"] == int(best["epoch"])
    assert record["fit_seconds"] > 0
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert [row["epoch"] for row in history] == ["0", "1", "2", "3"]
    assert set(history[0]) == {"epoch", "step", "lr", "train/loss", "train/acc", "val/loss", "val/acc"}
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == record["best_epoch"]


def test_fit_prints_a_line_per_epoch_a_table_and_the_next_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--trainer.max_epochs", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == (
        "UCIDigits: 1,150 training and 287 validation images. MLP: 109,386 parameters on cpu. "
        "Run folder: lightning_logs/version_0"
    )
    assert [line.split()[:2] for line in lines[1:3]] == [["Epoch", "0"], ["Epoch", "1"]]
    row = read_history(RUN / "metrics.csv")[0]
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert f"{name} {float(row[name]):<6.4g}" in lines[1]
    assert lines[4].startswith("Best validation accuracy")
    assert lines[-1] == "Next: python -m mnist_lightning test"


def test_a_normal_start_makes_no_noise() -> None:
    command = [sys.executable, "-m", "mnist_lightning", *FIT, "--trainer.max_epochs", "1"]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


def test_test_without_a_checkpoint_uses_the_newest_runs_best_and_its_data(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "--trainer.accelerator", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"Checkpoint: {run}/checkpoints/best.ckpt (the best of the newest run)" in out
    assert files_of(run) == FILES_OF_FIT | FILES_OF_TEST
    metrics = json.loads((run / "report/metrics.json").read_text())
    labels, probabilities = plain_predictions(run / "checkpoints/best.ckpt")
    digits = probabilities.argmax(axis=1)
    per_digit = classification_report(labels, digits, output_dict=True)
    confusion = confusion_matrix(labels, digits)
    assert list(metrics) == [
        *("dataset", "num_examples", "loss", "accuracy"),
        *("precision_macro", "recall_macro", "f1_macro", "auroc_macro", "ece", "per_digit"),
        *("precision_per_digit", "recall_per_digit", "f1_per_digit", "auroc_per_digit", "confusion_matrix"),
    ]
    assert (metrics["dataset"], metrics["num_examples"]) == ("UCIDigits", 360)
    assert metrics["confusion_matrix"] == confusion.tolist()
    assert metrics["per_digit"] == pytest.approx(confusion.diagonal() / confusion.sum(axis=1), abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(per_digit["accuracy"], abs=1e-12)
    for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert metrics[f"{ours}_macro"] == pytest.approx(per_digit["macro avg"][theirs], abs=1e-12)
        expected = [per_digit[str(digit)][theirs] for digit in range(10)]
        assert metrics[f"{ours}_per_digit"] == pytest.approx(expected, abs=1e-12)
    auroc = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert metrics["auroc_macro"] == pytest.approx(auroc, abs=1e-6)
    ece = multiclass_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels), 10, n_bins=15)
    assert probabilities.max() < 1  # for a confidence of exactly 1 torchmetrics has a bin of its own
    assert metrics["ece"] == pytest.approx(ece.item(), abs=1e-6)
    log_loss = -np.log(probabilities[np.arange(360), labels]).mean()
    assert metrics["loss"] == pytest.approx(log_loss, abs=1e-5)
    assert f"accuracy {metrics['accuracy']:.2%}" in out


def test_predict_writes_the_test_images_in_order(run: Path) -> None:
    assert main(["predict", "--trainer.accelerator", "cpu", "--data.eval_batch_size", "77"]) == 0
    assert files_of(run) == FILES_OF_FIT | {"predictions.csv"}
    with (run / "predictions.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["index", "digit", "confidence", *(f"p{digit}" for digit in range(10))]
    table = np.array(rows, np.float64)
    _, probabilities = plain_predictions(run / "checkpoints/best.ckpt")
    np.testing.assert_array_equal(table[:, 0], np.arange(360))
    np.testing.assert_array_equal(table[:, 1], probabilities.argmax(axis=1))
    np.testing.assert_allclose(table[:, 2], probabilities.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(table[:, 3:], probabilities, rtol=1e-4, atol=1e-9)


def test_validate_prints_what_fit_measured_and_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(Path())
    assert main(["validate", "--trainer.accelerator", "cpu"]) == 0
    best = json.loads((run / "run.json").read_text())["best_val_acc"]
    assert f"validation accuracy {best:.2%}" in capsys.readouterr().out
    assert snapshot(Path()) == before


def test_a_run_folder_or_a_moved_checkpoint_can_be_tested(run: Path, tmp_path: Path) -> None:
    moved = shutil.move(run, tmp_path / "moved")
    assert main(["test", "--ckpt_path", str(moved)]) == 0
    report = (Path(moved) / "report/metrics.json").read_text()
    # Outside a run folder there is nothing to tell the data from, and a new folder takes the report.
    alone = shutil.copy(Path(moved) / "checkpoints/best.ckpt", "alone.ckpt")
    assert main(["test", "--data", "UCIDigits", "--ckpt_path", alone]) == 0
    assert (RUN / "report/metrics.json").read_text() == report


def test_flags_override_the_runs_data_settings(run: Path, tiny_mnist: Path) -> None:
    args = ["--data", "MNIST", "--data.data_dir", str(tiny_mnist)]
    assert main(["test", *args]) == 0
    metrics = json.loads((run / "report/metrics.json").read_text())
    assert (metrics["dataset"], metrics["num_examples"]) == ("MNIST", 50)


@pytest.mark.parametrize("moved", [False, True])
def test_a_resumed_run_goes_on_in_its_folder_with_its_settings_and_its_history_whole(moved: bool) -> None:
    assert main([*FIT, "--trainer.max_epochs", "2", "--data.batch_size", "64"]) == 0
    run = RUN
    if moved:
        run = Path(shutil.move(RUN, "lightning_logs/renamed"))
    first = read_history(run / "metrics.csv")
    seconds = json.loads((run / "run.json").read_text())["fit_seconds"]
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"]) == 0
    assert list(Path("lightning_logs").iterdir()) == [run]
    assert files_of(run) == FILES_OF_FIT
    history = read_history(run / "metrics.csv")
    assert history[:2] == first
    assert [(row["epoch"], row["step"]) for row in history] == [("0", "17"), ("1", "35"), ("2", "53"), ("3", "71")]
    record = json.loads((run / "run.json").read_text())
    assert (record["dataset"], record["epochs"], record["global_step"]) == ("UCIDigits", 4, 72)
    assert record["fit_seconds"] > seconds
    best = max(history, key=lambda row: float(row["val/acc"]))
    assert record["best_val_acc"] == pytest.approx(float(best["val/acc"]))


def test_a_resumed_run_does_not_replace_the_best_checkpoint_by_a_worse_one(run: Path) -> None:
    best = (run / "checkpoints/best.ckpt").read_bytes()
    record = json.loads((run / "run.json").read_text())
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    # As if the best had been perfect: no further epoch can beat it.
    for name, state in last["callbacks"].items():
        if name.startswith("ModelCheckpoint"):
            state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(1.0))
            state["best_model_score"] = state["kth_value"] = torch.tensor(1.0)
        if name == "RunRecord":
            state["best_val_acc"] = 1.0
    torch.save(last, run / "checkpoints/last.ckpt")
    moved = shutil.move(run, "lightning_logs/elsewhere")
    assert main(["fit", "--ckpt_path", moved, "--trainer.max_epochs", "5"]) == 0
    assert (Path(moved) / "checkpoints/best.ckpt").read_bytes() == best
    now = json.loads((Path(moved) / "run.json").read_text())
    assert (now["best_val_acc"], now["best_epoch"]) == (1.0, record["best_epoch"])


def test_the_last_checkpoint_is_the_last_epochs_also_when_another_was_best() -> None:
    # The accuracy grows, so by this measure the first epoch is the best.
    assert main([*FIT, "--trainer.max_epochs", "3", "--checkpoint.mode", "min"]) == 0
    for name, epoch in (("best", 0), ("last", 2)):
        assert torch.load(RUN / f"checkpoints/{name}.ckpt", weights_only=True)["epoch"] == epoch
    before = read_history(RUN / "metrics.csv")
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"]) == 0
    assert read_history(RUN / "metrics.csv")[:3] == before
    assert torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["epoch"] == 0


@pytest.mark.parametrize(
    "rhythm", [["--trainer.check_val_every_n_epoch", "2"], ["--trainer.val_check_interval", "0.25"]]
)
def test_resuming_keeps_the_history_whatever_the_rhythm_of_validation(rhythm: list[str]) -> None:
    assert main([*FIT, "--trainer.max_epochs", "2", *rhythm]) == 0
    before = read_history(RUN / "metrics.csv")
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"]) == 0
    history = read_history(RUN / "metrics.csv")
    assert history[: len(before)] == before
    assert len(history) == 2 * len(before)


def test_resuming_a_finished_run_says_so_and_a_failed_resume_changes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert "Nothing was left to train; to go on, raise --trainer.max_epochs above 4." in capsys.readouterr().out
    before = {name: content for name, content in snapshot(run).items() if "events" not in name}
    args = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "6", "--trainer.val_check_interval", "1000"]
    assert main(args) == 2
    after = {name: content for name, content in snapshot(run).items() if "events" not in name}
    assert after.keys() == before.keys()
    assert after["config.yaml"] == before["config.yaml"]
    assert after["metrics.csv"] == before["metrics.csv"]


def test_next_names_the_run_where_a_plain_test_would_take_another(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    moved = shutil.move(run, tmp_path / "moved")
    assert main(["fit", "--ckpt_path", str(moved), "--trainer.max_epochs", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Next: python -m mnist_lightning test --ckpt_path {moved}"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["test", "--trainer.limit_test_batches", "0"], "Nothing was written."),
        (["predict", "--trainer.limit_predict_batches", "0"], "Nothing was written."),
        (["validate", "--trainer.limit_val_batches", "0"], "Nothing was measured."),
    ],
)
def test_no_batches_give_no_results(run: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert main(args) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert files_of(run) == FILES_OF_FIT


def test_lightnings_own_switches_and_classes_can_be_used() -> None:
    bar = ["--trainer.callbacks+=TQDMProgressBar", "--trainer.logger", "TensorBoardLogger"]
    assert main([*FIT, "--trainer.max_epochs", "1", *bar, "--trainer.logger.save_dir", "mine"]) == 0
    assert (RUN / "checkpoints/best.ckpt").exists()
    assert main([*FIT, "--trainer.max_epochs", "1", "--trainer.enable_checkpointing", "false"]) == 0
    assert not Path("lightning_logs/version_1/checkpoints").exists()


def test_a_users_own_checkpoint_callback_and_the_runs_do_not_mix_when_it_is_resumed() -> None:
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=own"]
    own += ["--trainer.callbacks.monitor=val/loss"]
    # The accuracy grows, so by this measure the first epoch is the best; the loss falls, so for the other the last is.
    assert main([*FIT, "--trainer.max_epochs", "2", "--checkpoint.mode", "min", *own]) == 0
    assert [path.name for path in Path("own").iterdir()] == ["epoch=1-step=72.ckpt"]
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert [path.name for path in Path("own").iterdir()] == ["epoch=2-step=108.ckpt"]
    assert torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["epoch"] == 0


def test_fit_from_another_checkpoint_starts_a_new_run_and_leaves_the_old_one(run: Path) -> None:
    before = snapshot(run)
    assert main(["fit", "--ckpt_path", f"{run}/checkpoints/best.ckpt", "--trainer.max_epochs", "5"]) == 0
    assert snapshot(run) == before
    new = Path("lightning_logs/version_1")
    assert files_of(new) == FILES_OF_FIT
    assert json.loads((new / "run.json").read_text())["epochs"] == 5


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others() -> None:
    for seed in (7, 7, 8):
        assert main([*FIT, "--trainer.max_epochs", "2", "--seed_everything", str(seed)]) == 0
    first, second, third = (Path(f"lightning_logs/version_{n}/metrics.csv").read_bytes() for n in range(3))
    assert first == second != third


def test_settings_reach_the_run_and_its_config_gives_them_again() -> None:
    flags = ["--model.net.hidden_sizes", "[16]", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1"]
    assert main([*FIT, *flags, "--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1"]) == 0
    assert main(["fit", "-c", str(RUN / "config.yaml")]) == 0
    again = Path("lightning_logs/version_1")
    assert (again / "metrics.csv").read_bytes() == (RUN / "metrics.csv").read_bytes()
    assert (again / "config.yaml").read_bytes() == (RUN / "config.yaml").read_bytes()
    assert json.loads((again / "run.json").read_text())["num_parameters"] == 784 * 16 + 16 + 16 * 10 + 10
    model = DigitClassifier.load_from_checkpoint(again / "checkpoints/best.ckpt", weights_only=True)
    assert isinstance(model.configure_optimizers()["optimizer"], torch.optim.SGD)


def test_fast_dev_run_writes_nothing() -> None:
    assert main([*FIT, "--trainer.fast_dev_run", "true"]) == 0
    assert list(Path().iterdir()) == []


def test_without_loggers_or_a_bar_there_is_still_a_record(capfd: pytest.CaptureFixture[str]) -> None:
    off = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    assert main([*FIT, "--trainer.max_epochs", "1", *off]) == 0
    written = {str(path.relative_to(RUN)) for path in RUN.rglob("*") if path.is_file()}
    assert written == FILES_OF_FIT - {"metrics.csv", "curves.png"}
    assert json.loads((RUN / "run.json").read_text())["best_epoch"] == 0
    assert "Epoch 0" not in capfd.readouterr().out


def test_help_says_what_is_true_here_and_lists_no_hundreds_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], ["test", "--help"], ["fit", "--data.help", "MNIST"]):
        with pytest.raises(SystemExit) as exit_:
            main(args)
        assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "test Measure a checkpoint on the test images, and write a report." in text
    assert "by default the best of the newest run" in text
    assert "mnist_lightning.UCIDigits" in text
    assert "MNIST_LIGHTNING_DATA sets the default" in text
    assert "torch.nn.Linear" not in text
    assert "--weights_only" not in text  # nobody can turn it off


BAD = {
    "no run yet": (
        ["test"],
        "no run with a checkpoint in lightning_logs; train one first: python -m mnist_lightning fit",
    ),
    "no run to resume": (["fit", "--ckpt_path", "last"], "no run with a checkpoint in lightning_logs; train one first"),
    "no network": (
        ["fit", "--data.data_dir", "new", "--data.mirrors", '["http://127.0.0.1:9/"]'],
        "new/MNIST/raw/train-images-idx3-ubyte is missing, and no mirror has it: tried http://127.0.0.1:9/ (Connection "
        "refused); put MNIST's files into new/MNIST/raw, name other --data.mirrors, or use --data UCIDigits",
    ),
    "data_dir is a file": (["fit", "--data.data_dir", "file"], "Not a directory; check data_dir, got file"),
    "data_dir cannot be made": (
        ["fit", "--data.data_dir", "/proc/new"],
        "cannot write to /proc/new/MNIST/raw: No such file or directory; choose another data_dir",
    ),
    "data truncated": (
        ["fit", "--data.data_dir", "truncated", "--data.mirrors", "[]"],
        f"truncated/MNIST/raw/train-images-idx3-ubyte is corrupt: SHA-256 {hashlib.sha256(b'').hexdigest()} instead of "
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db, and no mirror has it: tried none",
    ),
    "root cannot be made": (
        [*FIT, "--trainer.default_root_dir", "/proc/new"],
        "cannot make a run folder in /proc/new/lightning_logs: No such file or directory; choose another",
    ),
    "no checkpoint": (
        ["test", "--ckpt_path", "nope.ckpt"],
        "no checkpoint at nope.ckpt; give --ckpt_path a checkpoint",
    ),
    "no checkpoint file": (
        ["predict", "--ckpt_path", "text.ckpt"],
        "text.ckpt is no checkpoint, or is damaged; give one",
    ),
    "checkpoint truncated": (
        ["validate", "--ckpt_path", "truncated.ckpt"],
        "truncated.ckpt is no checkpoint, or is dam",
    ),
    "fit from code": (
        ["fit", "--ckpt_path", "code.ckpt"],
        "code.ckpt was not loaded: it holds posix.mkdir, and anything",
    ),
    "test of code": (
        ["test", "--ckpt_path", "code.ckpt"],
        "code.ckpt was not loaded: it holds posix.mkdir, and anything",
    ),
    "another network": (
        ["test", "--data", "UCIDigits", "--ckpt_path", "other.ckpt"],
        "other.ckpt is for another network: layers.1.bias is (8,) there and unknown here",
    ),
    "weights alone": (
        ["test", "--ckpt_path", "weights.ckpt"],
        "weights.ckpt is no Lightning checkpoint: it has no global",
    ),
    "fit from weights alone": (
        ["fit", "--ckpt_path", "weights.ckpt"],
        "weights.ckpt is no Lightning checkpoint: it has",
    ),
    "another model": (["test", "--ckpt_path", "foreign.ckpt"], "foreign.ckpt is no checkpoint of DigitClassifier"),
    "batch size": ([*FIT, "--data.batch_size", "0"], "batch_size must be at least 1, got 0"),
    "fraction": ([*FIT, "--data.val_fraction", "1.5"], "val_fraction must be inside (0, 1), got 1.5"),
    "fraction of nothing": (
        [*FIT, "--data.val_fraction", "1e-5"],
        "val_fraction 1e-05 of 1437 images leaves a split e",
    ),
    "no number": ([*FIT, "--data.batch_size", "abc"], "--data.batch_size: expected int, got abc"),
    "unknown optimizer": (
        [*FIT, "--model.optimizer", "Foo"],
        "--model.optimizer: no class is named Foo: give one that",
    ),
    "unknown import path": (
        [*FIT, "--model.optimizer", "torch.optim.Foo"],
        "module 'torch.optim' has no attribute 'Foo'",
    ),
    "unknown data": (
        ["fit", "--data", "Foo"],
        "--data: no class is named Foo: give one that --help lists, or an import",
    ),
    "refused by the optimizer": ([*FIT, "--model.optimizer.lr=-1"], "was refused: Invalid learning rate: -1.0"),
    "choice": ([*FIT, "--model.lr_scheduler_interval", "week"], "expected one of ['epoch', 'step'], got week"),
    "unknown flag": ([*FIT, "--trainer.max_epoch", "3"], "unrecognized arguments: --trainer.max_epoch 3"),
    "abbreviated flag": ([*FIT, "--model.net.hid", "[3]"], "--model.net: Option 'hid' is not accepted"),
    "abbreviated group": ([*FIT, "--seed_every", "3"], "unrecognized arguments: --seed_every 3"),
    "accelerator": (
        [*FIT, "--trainer.accelerator", "foo"],
        "You selected an invalid accelerator name: `accelerator='foo'`",
    ),
    "devices": ([*FIT, "--trainer.devices", "0"], "`Trainer(devices='0')` value is not a valid input using cpu accel"),
    "no config": (["fit", "-c", "nope.yaml"], "--config: File does not exist: '"),
    "no YAML": (["fit", "-c", "text.ckpt"], "Unexpected config: no checkpoint"),
    "unknown verb": (
        ["train"],
        "argument subcommand: invalid choice: 'train' (choose from 'fit', 'validate', 'test', ",
    ),
    "option before the verb": (
        ["--seed_everything=1", "test"],
        "options come after the verb: begin with test, got",
    ),
    "seed": ([*FIT, "--seed_everything=-1"], "--seed_everything must be in [0, 2**32), got -1"),
    "checkpoint folder": (
        [*FIT, "--checkpoint.dirpath", "x"],
        "--checkpoint.dirpath and filename are fixed: test must",
    ),
    "barebones": ([*FIT, "--trainer.barebones", "true"], "--trainer.barebones has no checkpoints and no logs, so it"),
    "refused by Lightning": (
        [*FIT, "--trainer.val_check_interval", "1000"],
        "`val_check_interval` (1000) must be less than or equal to the number of the training batches (36)",
    ),
    "no verb": (
        [],
        'expected "subcommand" to be one of {fit,validate,test,predict,describe, ...}, but it was not provided.',
    ),
}


@pytest.mark.parametrize(("args", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2_and_changes_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    Path("file").write_text("")
    Path("truncated/MNIST/raw").mkdir(parents=True)
    Path("truncated/MNIST/raw/train-images-idx3-ubyte").write_bytes(b"")
    for kind in ("text", "truncated", "code"):
        bad_checkpoint(Path(f"{kind}.ckpt"), kind, folder / "trap")
    of_lightning = {"global_step": 1, "pytorch-lightning_version": "2.6.6"}
    torch.save(of_lightning | {"state_dict": MLP((8,)).state_dict()}, "other.ckpt")
    torch.save(of_lightning | {"state_dict": {}, "hyper_parameters": {"width": 3}}, "foreign.ckpt")
    torch.save({"state_dict": DigitClassifier(MLP()).state_dict()}, "weights.ckpt")
    before = snapshot(folder)
    assert main(args) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("python -m mnist_lightning: error: ")
    assert message in errors[0]
    assert snapshot(folder) == before


def test_an_error_in_the_users_own_code_keeps_its_traceback_and_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: MLP, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(MLP, "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(FIT)
    assert list(Path().iterdir()) == []


def test_a_process_exits_with_2_and_shows_the_traceback_only_when_asked() -> None:
    command = [sys.executable, "-m", "mnist_lightning", "test"]
    environment = {name: value for name, value in os.environ.items() if name != "MNIST_LIGHTNING_DEBUG"}
    plain = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert plain.returncode == 2
    assert plain.stderr.splitlines() == [
        "python -m mnist_lightning: error: no run with a checkpoint in lightning_logs; train one first: "
        "python -m mnist_lightning fit"
    ]
    debug = subprocess.run(command, capture_output=True, text=True, env=environment | {"MNIST_LIGHTNING_DEBUG": "1"})
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr
    assert list(Path().iterdir()) == []


def test_real_mnist_from_fit_to_the_same_accuracy_in_a_new_process(real_mnist: Path) -> None:
    data = ["--data.data_dir", str(real_mnist)]
    assert main(["fit", *data, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]) == 0
    record = json.loads((RUN / "run.json").read_text())
    assert (record["num_parameters"], record["global_step"]) == (109_386, 1_500)
    assert main(["test", "--trainer.accelerator", "cpu"]) == 0
    first = json.loads((RUN / "report/metrics.json").read_text())
    command = [sys.executable, "-m", "mnist_lightning", "test", "--trainer.accelerator", "cpu"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    second = json.loads((RUN / "report/metrics.json").read_text())
    assert first == second
    assert first["num_examples"] == 10_000
    assert first["accuracy"] == np.trace(first["confusion_matrix"]) / 10_000
    # One epoch of this recipe; chance is 0.1, and the ten epochs of the README reach 0.977.
    assert first["accuracy"] > 0.93
