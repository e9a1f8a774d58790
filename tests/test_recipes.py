"""Schedules, smoothing, teachers, averaged weights, and training without validation images."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from conftest import files_in, refused_line
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from numpy.typing import NDArray
from scipy.special import log_softmax
from test_processes import launch
from test_resume import Noise, StopAt, Tiny, assert_same, train
from torch import nn

from mnist_lightning import (
    CNN,
    MLP,
    Cosine,
    DigitClassifier,
    OneCycle,
    Plateau,
    UCIDigits,
    fit,
    load_run,
)
from mnist_lightning.cli.main import main
from mnist_lightning.errors import InputError

QUIET: dict[str, Any] = {"enable_progress_bar": False}
HIGHEST = 0.01  # the learning rate of test_resume.train


class Rates(Callback):
    """Note the learning rate of each update."""

    def __init__(self, hook: str) -> None:
        self.rates: list[float] = []
        setattr(
            self,
            hook,
            lambda trainer, *_: self.rates.append(trainer.optimizers[0].param_groups[0]["lr"]),
        )


class Inputs(nn.Module):
    """A network that keeps the training batches that it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) == 10:  # a training batch; other batches have other sizes
            self.seen.append(images.clone())
        return self.net(images)


def one_cycle(step: NDArray[np.int64], total: int) -> NDArray[np.float64]:
    """Half a cosine from a 25th up to 1, and one down to a 250,000th (Smith and Topin 2019)."""
    top, last = 0.3 * total - 1, total - 1
    up = 0.04 + 0.96 * (1 - np.cos(np.pi * step / top)) / 2
    down = 4e-6 + (1 - 4e-6) * (1 + np.cos(np.pi * (step - top) / (last - top))) / 2
    return np.where(step <= top, up, down)


def cosine(step: NDArray[np.int64], total: int) -> NDArray[np.float64]:
    rise = 0.1 * total
    down = (1 + np.cos(np.pi * (step - rise) / (total - rise))) / 2
    return np.where(step < rise, (step + 1) / (rise + 1), down)


@pytest.mark.parametrize(
    ("scheduler", "formula"), [(OneCycle, one_cycle), (partial(Cosine, warmup=0.1), cosine)]
)
@pytest.mark.parametrize(
    ("epochs", "accumulate"), [(2, 1), (5, 3)]
)  # 10 batches in 10 updates, or in 4
def test_schedule(
    scheduler: Any, formula: Any, epochs: int, accumulate: int, tmp_path: Path
) -> None:
    rates = Rates("on_before_optimizer_step" if accumulate > 1 else "on_train_batch_start")
    settings = {"model": {"lr_scheduler": scheduler}, "accumulate_grad_batches": accumulate}
    run = train(tmp_path, rates, max_epochs=epochs, **settings)
    assert rates.rates == pytest.approx(HIGHEST * formula(np.arange(20), 20), rel=1e-6, abs=1e-12)
    assert max(rates.rates) == pytest.approx(HIGHEST, rel=1e-12)
    assert torch.load(run.folder / "checkpoints/last.ckpt")["lr_schedulers"][0]["last_epoch"] == 20
    # Resumed for longer, the schedule is that of the longer run; the optimizer's rate is the old
    # one for one update.
    del rates.rates[:]
    train(tmp_path, rates, max_epochs=2 * epochs, resume="last", **settings)
    assert rates.rates[1:] == pytest.approx(
        HIGHEST * formula(np.arange(21, 40), 40), rel=1e-6, abs=1e-12
    )


def test_plateau(tmp_path: Path) -> None:
    """It rises for a quarter of the updates, and falls to a third after two epochs without gain."""
    rates = Rates("on_train_batch_start")
    scheduler = partial(Plateau, warmup=0.25, factor=1 / 3, patience=1)
    model = {"lr_scheduler": scheduler}
    run = train(tmp_path / "whole", rates, max_epochs=12, model=model)
    share, best, bad, expected = 1.0, np.inf, 0, []
    for epoch, row in enumerate(run.history):
        expected += [
            HIGHEST * share * min(1, 0.04 + 0.96 * step / 30)
            for step in range(10 * epoch, 10 * epoch + 10)
        ]
        bad = 0 if row["val/loss"] < best * (1 - 1e-4) else bad + 1
        best = min(best, row["val/loss"])
        if bad == 2:
            share, bad = share / 3, 0
    assert rates.rates == pytest.approx(expected, rel=1e-6)
    assert share < 1
    assert max(rates.rates) <= HIGHEST * (1 + 1e-9)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", StopAt(24), max_epochs=12, model=model)
    train(tmp_path / "a", max_epochs=12, resume="last", model=model)
    assert_same(tmp_path / "a/version_0", run.folder)


@pytest.mark.parametrize("scheduler", [OneCycle, Cosine, Plateau])
def test_warmup_out_of_range(scheduler: Any, tmp_path: Path) -> None:
    for warmup in (-0.1, 1.5):
        with pytest.raises(
            InputError, match=r"learning rate scheduler was refused: .*(\[0, 1\]|between 0 and 1)"
        ):
            train(
                tmp_path / "logs",
                max_epochs=1,
                model={"lr_scheduler": partial(scheduler, warmup=warmup)},
            )


def test_run_without_an_end(tmp_path: Path) -> None:
    """Only a plateau without a warm-up needs no length."""
    endless: dict[str, Any] = {"max_epochs": -1, "max_time": {"seconds": 0}}
    for scheduler in (OneCycle, Cosine, partial(Plateau, warmup=0.1)):
        with pytest.raises(InputError, match="total_steps"):
            train(tmp_path / "a", model={"lr_scheduler": scheduler}, **endless)
    assert train(tmp_path / "b", model={"lr_scheduler": Plateau}, **endless).record["epochs"] <= 1


@pytest.mark.slow
def test_schedule_of_two_processes(tmp_path: Path) -> None:
    flags = ["--model.lr_scheduler", "OneCycle", "--trainer.max_epochs", "2", "--name", "a"]
    launch(tmp_path, "fit", "--data", "UCIDigits", *flags)
    last = torch.load(tmp_path / "lightning_logs/a/checkpoints/last.ckpt")
    assert last["global_step"] == 36  # 575 of 1,150 images each, 32 at once, twice
    assert [last["lr_schedulers"][0][name] for name in ("last_epoch", "total_steps")] == [36, 36]


@pytest.mark.parametrize(
    ("smoothing", "temperature", "teachers"),
    [(0, 1, 0), (0.2, 1, 0), (0.2, 2, 0), (0, 1, 1), (0, 2, 1), (0.2, 2, 2)],
)
def test_loss(smoothing: float, temperature: float, teachers: int, tmp_path: Path) -> None:
    """One update with all images; with a teacher, the labels and their smoothing do not matter."""
    torch.manual_seed(0)
    net, *others = (MLP([]) for _ in range(1 + teachers))
    data = Tiny(batch_size=100)
    data.setup("fit")
    images, labels = data.train_set.arrays()  # type: ignore[union-attr]

    def log_probabilities(net: nn.Module) -> NDArray[np.float64]:
        weight, bias = (value.detach().double().numpy() for value in net.parameters())
        return log_softmax((images.reshape(100, -1) / 255 @ weight.T + bias) / temperature, axis=1)

    student = log_probabilities(net)
    if teachers:
        target = np.mean([np.exp(log_probabilities(other)) for other in others], axis=0)
        expected = (target * (np.log(target) - student)).sum(axis=1).mean() * temperature**2
    else:
        expected = (
            -(((1 - smoothing) * np.eye(10)[labels] + smoothing / 10) * student).sum(axis=1).mean()
        )
    model = DigitClassifier(net, label_smoothing=smoothing, temperature=temperature)
    run = fit(model, data, teacher=others or None, log_dir=tmp_path, max_epochs=1, **QUIET)
    assert run.history[0]["train/loss"] == pytest.approx(expected, rel=1e-5)
    # In validation it is the plain cross-entropy of the labels.
    images, labels = data.val_set.arrays()  # type: ignore[union-attr]
    loss = -np.log(run.predict(images).probabilities[range(20), labels]).mean()
    assert run.validate()["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("temperature", 0.0),
        ("temperature", -1),
    ],
)
def test_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name} must be .*, got {value}"):
        DigitClassifier(MLP([]), **{name: value})  # type: ignore[arg-type]


def test_teacher_is_not_changed_and_not_saved(tmp_path: Path) -> None:
    """It is in evaluation mode, and gets the images that the student gets, with their noise."""
    teacher, student = Inputs(CNN(2, dropout=0.5)), Inputs(MLP([16]))
    before = copy.deepcopy(teacher.state_dict())
    data = Tiny(augmentation=Noise())
    run = fit(
        DigitClassifier(student), data, teacher=teacher, log_dir=tmp_path, max_epochs=2, **QUIET
    )
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert len(teacher.seen) == 20
    torch.testing.assert_close(teacher.seen, student.seen[-20:], rtol=0, atol=0)
    assert (
        len(torch.stack(teacher.seen).flatten(0, 1).unique(dim=0)) == 200
    )  # noise of its own in each epoch
    saved = torch.load(run.folder / "checkpoints/last.ckpt")["state_dict"]
    assert list(saved) == [f"net.{name}" for name in student.state_dict()]


def test_distilled_run_is_resumed(folder: Path) -> None:
    """config.yaml names the teachers that are files: a killed run is resumed, to the bit."""
    for name in ("t", "u"):
        fit(DigitClassifier(MLP([8])), UCIDigits(), name=name, max_epochs=1, **QUIET)
    teachers: list[Any] = ["lightning_logs/t", "lightning_logs/u/checkpoints/last.ckpt"]

    def distil(name: str, *callbacks: Callback) -> Path:
        torch.manual_seed(1)
        model = DigitClassifier(MLP([16], dropout=0.5), temperature=2.0)
        settings: dict[str, Any] = {
            "max_epochs": 3,
            "callbacks": callbacks,
            "teacher": teachers,
            **QUIET,
        }
        return fit(model, UCIDigits(), name=name, **settings).folder

    whole = distil("whole")
    with pytest.raises(KeyboardInterrupt):
        distil("killed", StopAt(50))
    assert yaml.safe_load((whole / "config.yaml").read_text())["teacher"] == teachers
    assert main(["fit", "--ckpt_path", "lightning_logs/killed"]) == 0
    assert_same(Path("lightning_logs/killed"), whole)
    flags = ["--data", "UCIDigits", "--trainer.max_epochs", "1", "--name", "cli"]
    assert main(["fit", "--teacher", *teachers, *flags]) == 0
    assert yaml.safe_load(Path("lightning_logs/cli/config.yaml").read_text())["teacher"] == teachers
    assert (
        load_run("lightning_logs/cli").history[0]["train/loss"] < 1
    )  # the divergence, not the cross-entropy


class Average(Callback):
    """The moving average by its definition: after updates 1, 4, 7, ..."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % 3 == 1:
            weights = {name: value.double() for name, value in pl_module.state_dict().items()}
            old = weights if trainer.global_step == 1 else self.average
            self.average = {name: 0.9 * old[name] + 0.1 * value for name, value in weights.items()}


def test_averaged_weights(tmp_path: Path) -> None:
    """A run that is stopped, or trained for longer, ends with the bits of the undisturbed run."""

    def ema(folder: str, *callbacks: Callback, epochs: int = 4, resume: Any = None) -> Any:
        own = EMAWeightAveraging(decay=0.9, update_every_n_steps=3)
        return train(tmp_path / folder, own, *callbacks, max_epochs=epochs, resume=resume)

    average = Average()
    whole = ema("whole", average)
    last, best = (
        torch.load(whole.folder / f"checkpoints/{which}.ckpt") for which in ("last", "best")
    )
    with pytest.raises(KeyboardInterrupt):
        ema("stopped", StopAt(23))
    ema("short", epochs=2)
    for folder in ("stopped", "short"):
        run = ema(folder, resume="last")
        assert_same(run.folder, whole.folder)
        saved = torch.load(run.folder / "checkpoints/last.ckpt")
        for name in ("averaging_state", "current_model_state"):
            torch.testing.assert_close(saved[name], last[name], rtol=0, atol=0)
    for name, value in last["state_dict"].items():
        torch.testing.assert_close(value.double(), average.average[name], rtol=1e-5, atol=1e-6)
        assert (last["current_model_state"][name] != value).any()
    for model in (whole.model, load_run(whole.folder).model):
        torch.testing.assert_close(model.state_dict(), best["state_dict"], rtol=0, atol=0)
    assert load_run(whole.folder).validate()["accuracy"] == pytest.approx(whole.best_val_acc)


def test_without_validation_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, epochs: int) -> Any:
        torch.manual_seed(0)
        model, data = DigitClassifier(MLP([8])), UCIDigits(batch_size=100, val_fraction=0)
        return fit(model, data, name=name, max_epochs=epochs, **QUIET)

    longer, short = run("longer", 3), run("short", 2)
    assert short.record["global_step"] == 30  # 15 updates for all 1,437 images
    assert [short.record[name] for name in ("weights", "best_val_acc", "best_epoch")] == [
        "last",
        None,
        None,
    ]
    assert [set(row) for row in short.history] == [
        {"epoch", "step", "lr", "train/acc", "train/loss"}
    ] * 2
    assert {name for name in files_in(short.folder) if "ckpt" in name} == {"checkpoints/last.ckpt"}
    for path in (None, "best", "lightning_logs/short"):
        assert load_run(path).checkpoint == Path("lightning_logs/short/checkpoints/last.ckpt")
    capsys.readouterr()
    assert main(["test"]) == 0
    assert capsys.readouterr().out.startswith(
        "Checkpoint: lightning_logs/short/checkpoints/last.ckpt"
    )
    message = "val_fraction is 0, so there are no validation images: use test"
    assert refused_line(capsys, "validate") == message
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert "Next: python -m mnist_lightning test" in capsys.readouterr().out
    assert_same(short.folder, longer.folder)
