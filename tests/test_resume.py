"""A run that is stopped at any time and resumed ends with the bits of the undisturbed run."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import refusal, refused_line
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from mnist_lightning import (
    MLP,
    DigitClassifier,
    DigitDataModule,
    OneCycle,
    UCIDigits,
    fit,
    load_run,
)
from mnist_lightning.cli.main import main
from mnist_lightning.data.loader import BatchLoader
from mnist_lightning.errors import InputError
from mnist_lightning.files import read_config
from mnist_lightning.training import loggers
from mnist_lightning.training.loggers import read_history
from mnist_lightning.training.quiet import quiet


class Noise(nn.Module):
    """An augmentation that draws random numbers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 0.1 * torch.rand_like(images)


class Tiny(DigitDataModule):
    """100 training images in 10 batches, 20 validation images."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"batch_size": 10, "val_fraction": 1 / 6} | kwargs)

    def load(self, split: str) -> tuple[Any, Any]:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (120, 28, 28), np.uint8), rng.integers(0, 10, 120)


class StopAt(Callback):
    """Stop training before an update, or in a validation, as Ctrl-C does or as an error would."""

    def __init__(
        self, step: int, hook: str = "on_train_batch_start", error: BaseException | None = None
    ) -> None:
        self.step, self.error = step, error or KeyboardInterrupt()
        setattr(self, hook, self.check)

    def check(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            raise self.error


def train(
    folder: Path,
    *callbacks: Callback,
    resume: Any = None,
    model: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    torch.manual_seed(1)
    optimizer = {"optimizer": lambda params: torch.optim.Adam(params, lr=0.01)}
    net = kwargs.pop("net", None) or MLP([16], dropout=0.5)
    classifier = DigitClassifier(net, **optimizer | (model or {}))
    data = kwargs.pop("data", None) or Tiny()
    quiet = {"enable_progress_bar": False}
    return fit(
        classifier, data, log_dir=folder, resume=resume, callbacks=callbacks, **quiet | kwargs
    )


def outcome(run: Path) -> tuple[Any, ...]:
    """What must be the same: tensors, plain values with all counters, and the history."""
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    plain = [saved[name] for name in ("epoch", "global_step", "lr_schedulers", "loops")]
    return (
        (saved["state_dict"], saved["optimizer_states"]),
        plain,
        (run / "metrics.csv").read_text(),
    )


def assert_same(run: Path, other: Path) -> None:
    own, others = outcome(run), outcome(other)
    torch.testing.assert_close(own[0], others[0], rtol=0, atol=0)
    assert own[1:] == others[1:]


CASES: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 4},
    "epochs and steps": {"max_epochs": 6, "max_steps": 60},
    "steps end inside an epoch": {"max_epochs": 6, "max_steps": 37},
    "steps alone": {"max_epochs": -1, "max_steps": 40},
    "validation inside epochs": {"max_epochs": 4, "val_check_interval": 7},
    "validation by updates": {
        "max_epochs": 4,
        "val_check_interval": 13,
        "check_val_every_n_epoch": None,
    },
    "validation every second epoch": {"max_epochs": 4, "check_val_every_n_epoch": 2},
    "loaders made anew": {"max_epochs": 4, "reload_dataloaders_every_n_epochs": 1},
    "no validation": {"max_epochs": 4, "limit_val_batches": 0},
    "accumulated gradients": {"max_epochs": 4, "accumulate_grad_batches": 3},
    "random augmentation": {"max_epochs": 4, "data": Tiny(augmentation=Noise())},
    "one cycle": {
        "max_epochs": 4,
        "model": {
            "lr_scheduler": lambda o: OneCycleLR(o, 0.01, total_steps=40),
            "lr_scheduler_interval": "step",
        },
    },
    "plateau": {
        "max_epochs": 4,
        "model": {
            "lr_scheduler": lambda o: L.pytorch.cli.ReduceLROnPlateau(o, "val/loss", patience=0)
        },
    },
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", **settings)
    steps = (2, 7) if "accumulate_grad_batches" in settings else (3, 24)
    stops = [StopAt(step) for step in steps] + (
        [StopAt(20, "on_validation_start")] if len(settings) == 1 else []
    )
    for number, stop in enumerate(stops):
        folder = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt) as stopped:
            train(folder, stop, **settings)
        assert stopped.value.__notes__ == [
            f"To resume: python -m mnist_lightning fit --ckpt_path {folder}/version_0"
        ]
        train(folder, resume="last", **settings)
        assert_same(folder / "version_0", whole.folder)


def test_stopped_twice_and_moved(tmp_path: Path) -> None:
    """The best checkpoint stays the best, wherever the folder is."""
    whole = train(tmp_path / "whole", max_epochs=5)
    for step, resume in ((12, None), (33, "last")):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "a", StopAt(step), max_epochs=5, resume=resume)
    shutil.move(tmp_path / "a" / "version_0", tmp_path / "b")
    run = train(tmp_path, max_epochs=5, resume=tmp_path / "b")
    assert_same(tmp_path / "b", whole.folder)
    left_out = {"fit_seconds", "started", "command"}
    assert {k: v for k, v in run.record.items() if k not in left_out} == {
        k: v for k, v in whole.record.items() if k not in left_out
    }
    best, other = (
        torch.load(folder / "checkpoints/best.ckpt") for folder in (run.folder, whole.folder)
    )
    torch.testing.assert_close(best["state_dict"], other["state_dict"], rtol=0, atol=0)


def test_more_epochs(tmp_path: Path) -> None:
    """Three epochs and then three more are six epochs."""
    whole = train(tmp_path / "whole", max_epochs=6)
    train(tmp_path / "a", max_epochs=3)
    train(tmp_path / "a", max_epochs=6, resume="last")
    assert_same(tmp_path / "a/version_0", whole.folder)


def test_longer_schedule(tmp_path: Path) -> None:
    """A schedule without a length has the run's, also of a run that is resumed to train longer."""
    model = {"lr_scheduler": partial(OneCycleLR, max_lr=0.01)}
    run = train(tmp_path, max_epochs=2, model=model)
    assert outcome(run.folder)[1][2][0]["total_steps"] == 20
    # Up to the maximum in 5 updates of 20, and down again along a cosine (Smith and Topin 2019, as
    # torch has it).
    after_10 = 0.01 * (1 + np.cos(np.pi * 5 / 14)) / 2
    assert [row["lr"] for row in run.history] == pytest.approx([0.0004, after_10], rel=1e-4)
    run = train(tmp_path, max_epochs=5, model=model, resume="last")
    assert outcome(run.folder)[1][2][0]["total_steps"] == 50
    assert run.record["global_step"] == 50


def test_orders_differ() -> None:
    """Neighbouring seeds share no order; an order is a permutation that processes deal out."""
    data = Tiny()
    data.setup("fit")
    rows = data.train_set.rows  # type: ignore[union-attr]

    def order(seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> list[int]:
        loader = BatchLoader(
            torch.zeros(120, 28, 28),
            None,
            rows,
            batch_size=10,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        loader.set_epoch(epoch)
        return loader.order().tolist()  # type: ignore[no-any-return]

    orders = [tuple(order(seed, epoch)) for seed in range(42, 47) for epoch in range(10)]
    assert len(set(orders)) == 50
    assert sorted(orders[0]) == sorted(rows.tolist())
    halves = order(42, 0, 0, 2), order(42, 0, 1, 2)
    assert [row for pair in zip(*halves, strict=True) for row in pair] == list(orders[0])
    thirds = [order(42, 0, rank, 3) for rank in range(3)]  # 100 rows: 34 each
    assert [len(third) for third in thirds] == [34, 34, 34]
    assert set().union(*thirds) == set(rows.tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 33, 99, 100, 5000])
@pytest.mark.parametrize("number", [1, 2, 3, 99, 100, 101, 4097])
def test_a_lone_last_image_joins_the_batch_before(
    number: int, batch_size: int, world_size: int
) -> None:
    """In training only; the batches are those of a plain loop, on each process."""
    images = torch.arange(number).to(torch.uint8)[:, None, None].expand(number, 28, 28)
    settings: dict[str, Any] = {"batch_size": batch_size, "world_size": world_size}
    for rank, seed in ((rank, seed) for rank in range(world_size) for seed in (3, None)):
        loader = BatchLoader(images, torch.arange(number), rank=rank, seed=seed, **settings)
        rows = loader.order().tolist()
        expected = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        if seed is not None and batch_size > 1 and len(expected) > 1 and len(expected[-1]) == 1:
            expected[-2:] = [expected[-2] + expected[-1]]
        batches = list(loader)
        assert [labels.tolist() for _, labels in batches] == expected
        assert all(
            torch.equal((pixels[:, 0, 0, 0] * 255).round(), labels % 256)
            for pixels, labels in batches
        )
        assert len(loader) == len(batches)


def test_batch_normalisation_of_a_lone_image(tmp_path: Path) -> None:
    """100 images in batches of 33 are 33, 33 and 34; the schedule ends with them."""

    settings = {"data": Tiny(batch_size=33), "model": {"lr_scheduler": OneCycle}, "max_epochs": 3}

    def run(folder: Path, *callbacks: Callback, **kwargs: Any) -> Any:
        torch.manual_seed(1)
        net = MLP([8], batch_norm=True)
        return train(folder, *callbacks, net=net, **settings | kwargs)

    whole = run(tmp_path / "whole")
    assert whole.record["global_step"] == 9
    schedule = torch.load(whole.folder / "checkpoints/last.ckpt")["lr_schedulers"][0]
    assert (schedule["total_steps"], schedule["last_epoch"]) == (9, 9)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", StopAt(5))
    assert_same(run(tmp_path / "a", resume="last").folder, whole.folder)
    for data in (Tiny(batch_size=1), Tiny(train_size=1)):
        line = refusal(run, tmp_path, data=data)
        assert line.startswith("the network refuses one image, choose a larger batch_size: Expect")


class Rate(LearningRateMonitor):
    """A row of the history for each update, and a second call for some of them."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.log("loss", outputs["loss"])


STEPS: dict[str, Any] = {"max_epochs": 4, "log_every_n_steps": 1}


def test_history_of_each_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written whole at epochs' ends and stops, and appended to between."""
    writes: list[int] = []
    write = loggers.write_csv
    monkeypatch.setattr(loggers, "write_csv", lambda *args: writes.append(1) or write(*args))
    whole = train(tmp_path / "whole", Rate("step"), **STEPS)
    assert len(writes) <= 2 * 4 + 3  # new columns, and the end
    lines = (whole.folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,loss,lr,lr-Adam,train/acc,train/loss,val/acc,val/loss"
    assert [line.split(",")[:2] for line in lines[1:]] == [
        [str(step // 10), str(step)] for step in range(40)
    ]
    assert [row["step"] for row in whole.history] == [*range(40)]
    assert all({"loss", "lr-Adam"} <= row.keys() for row in whole.history)
    assert [row["step"] for row in whole.history if "val/acc" in row] == [9, 19, 29, 39]
    with pytest.raises(RuntimeError, match="own"):
        train(tmp_path / "a", Rate("step"), StopAt(25, error=RuntimeError("own")), **STEPS)
    folder = tmp_path / "a/version_0"
    rows = read_history(folder / "metrics.csv")
    assert [row["step"] for row in rows] == [
        line.split(",")[1] for line in lines[1:27]
    ]  # the rate of the next one
    assert [row["loss"] for row in rows[:25]] == [line.split(",")[2] for line in lines[1:26]]
    assert (folder / "curves.png").exists()
    assert_same(train(tmp_path / "a", Rate("step"), resume="last", **STEPS).folder, whole.folder)


class Copy(Callback):
    """Copy the run folder before an update, as a kill would leave it."""

    def __init__(self, step: int, target: Path) -> None:
        self.step, self.target = step, target

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            shutil.copytree(trainer.default_root_dir, self.target)


@pytest.mark.parametrize("torn", [b"", b"2,2", b"2,25,0.1,,0.0"])
@pytest.mark.parametrize("step", [20, 25])
def test_history_after_a_kill(step: int, torn: bytes, tmp_path: Path) -> None:
    """A killed run has every row, perhaps a part of the next, and is resumed exactly."""
    whole = train(tmp_path / "whole", Rate("step"), Copy(step, tmp_path / "killed"), **STEPS)
    path = tmp_path / "killed/metrics.csv"
    with path.open("ab") as file:
        file.write(torn)
    rows = load_run(tmp_path / "killed").history
    assert rows[:step] == whole.history[:step]
    assert_same(
        train(tmp_path, Rate("step"), resume=tmp_path / "killed", **STEPS).folder, whole.folder
    )


def test_history_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses while a spreadsheet shows the file: the next write has all."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    logger = loggers.HistoryLogger(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loggers, "write_csv", refuse)
        with pytest.warns(
            UserWarning,
            match=r"metrics.csv cannot be written: Permission denied; close the program",
        ):
            logger.log_metrics({"epoch": 0, "loss": 1.0}, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        logger.log_metrics({"epoch": 0, "loss": 2.0}, 1)
    logger.write()
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,loss\n0,0,1\n0,1,2\n"


def test_messages_are_filtered_once() -> None:
    """And only for a while, also after an error and one within another."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = warnings.filters[:], logger.filters[:]
    with contextlib.suppress(ValueError), quiet():
        with quiet():
            pass
        for text, is_shown in (("Restarting", True), ("GPU available: no", False)):
            record = logging.LogRecord("x", 20, "", 0, text, None, None)
            assert bool(logger.filter(record)) == is_shown
        raise ValueError
    assert (warnings.filters[:], logger.filters[:]) == before


def test_python_is_quiet(first: Path) -> None:
    """What a user of Python sees: the lines of the epochs, and nothing else on either stream."""
    code = (
        "from mnist_lightning import *; "
        "run = fit(DigitClassifier(MLP([8])), UCIDigits(), max_epochs=1); "
        "load_run(run.folder).test(); run.validate(); run.predict()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line.split()[0] for line in done.stdout.splitlines() if line]
    layers = ["name", "layers.0", "layers.1", "layers.2", "layers.3", "layers.4", "total"]
    assert lines == ["UCIDigits:", "MLP:", "Run", *layers, "Epoch"]
    assert done.stderr == ""


def test_error_in_first_epoch_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="own"):
        train(tmp_path / "logs", StopAt(3, error=ValueError("own")), max_epochs=2)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ("last", "no run with last.ckpt in .*: train one first"),
        ("nowhere", "no checkpoint at nowhere: give a run folder"),
        ("stray.ckpt", "only a run can be resumed: give 'last' or a run folder, got stray.ckpt"),
        (
            "damaged",
            "cannot read the checkpoint damaged.checkpoints.last.ckpt: .*; "
            "give a checkpoint that fit wrote",
        ),
    ],
)
def test_refused(resume: str, message: str, folder: Path) -> None:
    (folder / "damaged/checkpoints").mkdir(parents=True)
    (folder / "damaged/checkpoints/last.ckpt").write_bytes(b"PK" + bytes(100))
    (folder / "damaged/config.yaml").write_text("")
    (folder / "stray.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        train(folder / "logs", resume=resume)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FIT = ["fit", "--data", "UCIDigits", "--net.hidden_sizes", "[4]", "--device", "cpu"]
RESUME = ["fit", "--ckpt_path", "lightning_logs/a", "--epochs", "3"]


def test_a_resumed_run_keeps_its_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any other flag that differs is one line that names it, and nothing is written."""
    assert main([*FIT, "--epochs", "2", "--name", "a", "--model.lr_scheduler", "OneCycle"]) == 0
    before = contents(folder)
    for flags, name in (
        (["--lr", "0.5"], "model.optimizer.lr 0.001, now 0.5"),
        (["--model.optimizer.weight_decay", "0.1"], "model.optimizer.weight_decay 0.0, now 0.1"),
        (["--model.optimizer", "SGD"], "model.optimizer Adam, now SGD"),
        (["--model.lr_scheduler", "Cosine"], "model.lr_scheduler OneCycle, now Cosine"),
        (["--model.label_smoothing", "0.1"], "model.label_smoothing 0.0, now 0.1"),
        (["--batch_size", "64"], "data.batch_size 32, now 64"),
        (["--data.split_seed", "3"], "data.split_seed 0, now 3"),
        (["--data", "MNIST"], "data UCIDigits, now MNIST"),
        (["--net", "CNN"], "model.net MLP, now CNN"),
        (["--net.hidden_sizes", "[8]"], r"model.net.hidden_sizes \[4\], now \[8\]"),
        (["--seed", "7"], "seed 42, got 7"),
        (["--freeze", "layers.1"], r"freeze None, now \['layers.1'\]"),
        (["--precision", "bf16-mixed"], "trainer.precision None, now bf16-mixed"),
        (["--trainer.gradient_clip_val", "1"], "trainer.gradient_clip_val None, now 1(.0)?"),
        (["--trainer.limit_train_batches", "3"], "trainer.limit_train_batches None, now 3(.0)?"),
        (["--checkpoint.monitor", "val/loss"], "checkpoint.monitor val/acc, now val/loss"),
        (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run False, now True"),
        (
            ["--trainer.callbacks+=EMAWeightAveraging"],
            ".*callbacks, but .* with others: EMAWeightAveraging",
        ),
    ):
        line = refused_line(capsys, *RESUME, *flags)
        start = "a resumed run keeps its (settings: lightning_logs/a has )?"
        assert re.fullmatch(start + name, line), line
        assert contents(folder) == before
    free = "--trainer.callbacks+=ValidationFigures --data.eval_batch_size 9 "
    free += (
        "--trainer.max_time 00:01:00:00 --trainer.log_every_n_steps 7 --trainer.callbacks+=Timer"
    )
    assert main([*RESUME, *free.split()]) == 0
    record = json.loads(Path("lightning_logs/a/run.json").read_text())
    assert (record["epochs"], record["lr"]) == (3, 0.001)
    assert read_config(Path("lightning_logs/a/config.yaml"))["trainer"]["max_epochs"] == 3


def test_python_resumes_with_the_same_objects(tmp_path: Path) -> None:
    """What differs is one line, and the files of the run stay as they were."""
    run = train(tmp_path, max_epochs=2)
    files = [
        run.folder / name
        for name in ("run.json", "config.yaml", "metrics.csv", "checkpoints/last.ckpt")
    ]
    before = [file.read_bytes() for file in files]
    other, sgd = partial(torch.optim.Adam, lr=0.5), partial(torch.optim.SGD, lr=0.01)
    for settings, message in (
        ({"model": {"optimizer": other}}, "lr 0.01, got 0.5"),
        ({"model": {"optimizer": sgd}}, "optimizer Adam, got SGD"),
        ({"net": MLP([9], dropout=0.5)}, "hidden_sizes [16], got [9]"),
        ({"net": MLP([16], dropout=0.1)}, "dropout 0.5, got 0.1"),
        ({"net": nn.Sequential(MLP([16]))}, "for another network"),
        ({"net": nn.Flatten()}, "class_path MLP, got Flatten"),
        ({"model": {"label_smoothing": 0.1}}, "label_smoothing 0.0, got 0.1"),
        ({"data": Tiny(batch_size=5)}, "batch_size 10, got 5"),
        ({"data": Tiny(split_seed=1)}, "split_seed 0, got 1"),
        ({"data": Tiny(augmentation=Noise())}, "augmentation None, got Noise"),
        ({"seed": 1}, "seed 42, got 1"),
        ({"max_epochs": 1}, "the run has 2 epochs already"),
        ({"max_steps": 5}, "the run has 20 updates already"),
        ({"fast_dev_run": True}, "got fast_dev_run"),
        ({"freeze": "layers.1"}, "freeze None, got"),
        ({"teacher": MLP([4])}, "teacher None, got"),
        ({"gradient_clip_val": 1}, "trainer.gradient_clip_val None"),
    ):
        given = {"max_epochs": 3} | settings
        with pytest.raises(InputError, match=re.escape(message)) as refused:
            train(tmp_path, resume=run.folder, **given)
        assert not hasattr(refused.value, "__notes__")
        assert [file.read_bytes() for file in files] == before


def test_an_error_before_the_first_update_restores_the_files(tmp_path: Path) -> None:
    """Then the printed way to resume still works; after an update the new length stays."""
    whole = train(tmp_path / "whole", max_epochs=4)
    run = train(tmp_path / "a", max_epochs=2)
    files = [run.folder / "run.json", run.folder / "config.yaml"]
    before = [file.read_bytes() for file in files]
    with pytest.raises(ValueError, match="own"):
        train(tmp_path / "a", StopAt(20, error=ValueError("own")), max_epochs=4, resume="last")
    assert [file.read_bytes() for file in files] == before
    with pytest.raises(ValueError, match="own"):
        train(tmp_path / "a", StopAt(23, error=ValueError("own")), max_epochs=4, resume="last")
    assert json.loads(files[0].read_text())["finished"] is False
    train(tmp_path / "a", max_epochs=4, resume="last")
    assert_same(run.folder, whole.folder)


def test_one_process_trains_a_run(folder: Path) -> None:
    """The second that resumes it is refused, also while the first one trains it first."""
    more = ["--epochs", "1000", "--name", "a", "--trainer.enable_progress_bar", "false"]
    first = subprocess.Popen([sys.executable, "-m", "mnist_lightning", *FIT, *more])
    try:
        last = Path("lightning_logs/a/metrics.csv")
        end = time.monotonic() + 120
        while not last.exists() and time.monotonic() < end:
            time.sleep(0.1)
        before = json.loads(Path("lightning_logs/a/run.json").read_text())["started"]
        Path("link").symlink_to("lightning_logs/a")
        for path in ("lightning_logs/a", "link"):
            model = DigitClassifier(MLP([4]))
            line = refusal(fit, model, UCIDigits(), resume=path, max_epochs=2000)
            assert line == f"another process trains {path}: wait for it, or give another name"
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    assert json.loads(Path("lightning_logs/a/run.json").read_text())["started"] == before
    done = json.loads(Path("lightning_logs/a/run.json").read_text())["epochs"]
    # The lock died with it.
    assert main(["fit", "--ckpt_path", "lightning_logs/a", "--epochs", str(done + 1)]) == 0
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["a"]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has none")
@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138), ("SIGKILL", -9)]
)
def test_signals(name: str, code: int, folder: Path) -> None:
    """The process ends with the signal's code and says how to resume, which is exact."""
    command = [sys.executable, "-m", "mnist_lightning", "fit", "--data", "UCIDigits"]
    command += ["--epochs", "3"]
    source = Path(__file__).parent
    stopping = f"--trainer.callbacks+=test_resume.Signal --trainer.callbacks.name={name}".split()
    stopped = subprocess.run(
        [*command, "--name", "a", *stopping],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    assert stopped.returncode == code, stopped.stderr
    lines = [f"python -m mnist_lightning: stopped by {name}"]
    lines += ["To resume: python -m mnist_lightning fit --ckpt_path lightning_logs/a"]
    assert stopped.stderr.splitlines() == (lines if code > 0 else [])
    assert main([*command[3:4], "--ckpt_path", "last", "--trainer.callbacks", "null"]) == 0
    assert main([*command[3:], "--name", "b"]) == 0
    assert_same(folder / "lightning_logs/a", folder / "lightning_logs/b")


class Signal(Callback):
    """Send the process a signal after 50 updates."""

    def __init__(self, name: str) -> None:
        self.number = getattr(signal, name)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 50:
            os.kill(os.getpid(), self.number)
