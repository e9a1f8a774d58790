import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from mnist_lightning import MLP, DigitClassifier, UCIDigits
from mnist_lightning.data.base import GatheredDataset
from mnist_lightning.loop import DirectEpochLoop, use_direct_loop, useful_threads

# UCIDigits has 1,437 training images: with a fifth to validate, 1,150 train, in 36 batches of 32 an epoch.
PER_EPOCH = 36


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compare runs on as many threads each: sums in another order differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recorder(Callback):
    """Keeps what it is called for and with, as a user's callback would see it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(("start", trainer.global_step, batch_idx, batch[0].sum().item(), pl_module._current_fx_name))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.log("from_callback", float(batch_idx), on_step=True, on_epoch=True)
        loss = outputs["loss"].item() if "loss" in outputs else None
        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.calls.append(("end", trainer.global_step, batch_idx, loss, learning_rate, sorted(outputs)))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.calls.append(("validated", trainer.global_step, trainer.callback_metrics["val/loss"].item()))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        metrics = {name: value.item() for name, value in trainer.logged_metrics.items()}
        self.calls.append(("epoch", trainer.current_epoch, metrics))


class Silent(Recorder):
    """Logs nothing, so that there is nothing to log with each update."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(("end", trainer.global_step, batch_idx, outputs["loss"].item(), trainer.callback_metrics))


class LogsSteps(DigitClassifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("step_loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss, "extra": batch_idx}


class SkipsSome(DigitClassifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)


class Frozen(DigitClassifier):
    def configure_optimizers(self) -> Any:
        self.net.layers[1].weight.requires_grad_(False)
        return super().configure_optimizers()


class ClipsByHand(DigitClassifier):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_value_(self.parameters(), 1e-3)


class Stops(DigitClassifier):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 5 else None


class GradientCounter(Recorder):
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.calls.append(("gradient", sum(p.grad.abs().sum().item() for p in pl_module.parameters())))


def one_cycle(optimizer: torch.optim.Optimizer) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=0.01, total_steps=10_000)


def quiet_trainer(folder: Path, callbacks: list[Callback], **settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    settings = {**quiet, "max_epochs": 2, **settings}
    return L.Trainer(default_root_dir=folder, accelerator="cpu", callbacks=callbacks, **settings)


def fit(
    folder: Path,
    direct: bool,
    module: type[DigitClassifier] = DigitClassifier,
    recorder: Callable[[], Recorder] = Recorder,
    callbacks: Callable[[], list[Callback]] = list,
    settings: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    **trainer_settings: Any,
) -> tuple[L.Trainer, DigitClassifier, Recorder]:
    L.seed_everything(7, verbose=False)
    model = module(MLP((16,)), **(settings or {}))
    calls = recorder()
    trainer = quiet_trainer(folder, [calls, *callbacks()], **trainer_settings)
    if direct:
        use_direct_loop(trainer)
    trainer.fit(model, UCIDigits(), ckpt_path=ckpt_path, weights_only=False)
    return trainer, model, calls


PLAIN: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "nothing logged by the update": {"recorder": Silent, "logger": True, "log_every_n_steps": 1},
    "a scheduler that steps with each update": {
        "settings": {"lr_scheduler": one_cycle, "lr_scheduler_interval": "step"},
        "callbacks": lambda: [LearningRateMonitor(logging_interval="step")],
        "logger": True,
    },
    "a scheduler that steps with each epoch": {
        "settings": {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)}
    },
    "a plateau scheduler": {
        "settings": {
            "lr_scheduler": lambda optimizer: L.pytorch.cli.ReduceLROnPlateau(optimizer, "val/loss", patience=0)
        }
    },
    "max_steps": {"max_steps": 50},
    "limit_train_batches": {"limit_train_batches": 10, "limit_val_batches": 1},
    "a share of the batches": {"limit_train_batches": 0.3},
    "overfit_batches": {"overfit_batches": 3},
    "val_check_interval": {"val_check_interval": 7},
    "validation every second epoch": {"check_val_every_n_epoch": 2},
    "fast_dev_run": {"fast_dev_run": 3},
    "early stopping": {
        "callbacks": lambda: [EarlyStopping("val/loss", min_delta=10.0, patience=1)],
        "max_epochs": 9,
    },
    "min_steps": {
        "callbacks": lambda: [EarlyStopping("val/loss", min_delta=10.0, patience=0)],
        "max_epochs": 9,
        "min_steps": 80,
    },
    "a module that logs each step and returns a dict": {"module": LogsSteps, "logger": True, "log_every_n_steps": 3},
    "a module that skips batches": {"module": SkipsSome},
    "an optimizer that calls the closure again": {
        "settings": {"optimizer": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3)},
        "max_steps": 5,
    },
    "AdamW with a schedule of its momentum": {
        "settings": {
            "optimizer": lambda params: torch.optim.AdamW(params, weight_decay=0.1, fused=True),
            "lr_scheduler": lambda optimizer: OneCycleLR(optimizer, max_lr=0.01, total_steps=100),
            "lr_scheduler_interval": "step",
        },
    },
    "an Adam that is not fused": {"settings": {"optimizer": torch.optim.Adam}},
    "weights that are not trained": {"module": Frozen},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true", "settings": {"optimizer": torch.optim.SGD}},
    "double precision": {"precision": "64-true"},
    "loaders that are made anew": {"max_steps": 3, "reload_dataloaders_every_n_epochs": 1},
}
NOT_PLAIN: dict[str, dict[str, Any]] = {
    "accumulated gradients": {"accumulate_grad_batches": 3},
    "clipped gradients": {"gradient_clip_val": 0.01},
    "a profiler": {"profiler": "simple"},
    "anomaly detection": {"detect_anomaly": True},
    "a hook of the module inside the update": {"module": ClipsByHand},
    "a hook of the module that ends the epoch": {"module": Stops},
    "a hook of a callback inside the update": {"recorder": GradientCounter},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "is_direct"), [*zip(PLAIN, [True] * 99), *zip(NOT_PLAIN, [False] * 99)])  # noqa: B905
def test_the_direct_way_does_what_lightning_does(
    case: str, is_direct: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kwargs = (PLAIN | NOT_PLAIN)[case]
    theirs, their_model, their_calls = fit(folder / "theirs", False, **kwargs)
    steps = []
    update = DirectEpochLoop._update
    monkeypatch.setattr(DirectEpochLoop, "_update", lambda *args: steps.append(1) or update(*args))
    ours, our_model, our_calls = fit(folder / "ours", True, **kwargs)

    assert bool(steps) == is_direct
    assert our_calls.calls == their_calls.calls
    assert their_calls.calls
    assert (ours.global_step, ours.current_epoch) == (theirs.global_step, theirs.current_epoch)
    assert ours.fit_loop.state_dict() == theirs.fit_loop.state_dict()  # every counter that a checkpoint holds
    for mine, plain in zip(our_model.parameters(), their_model.parameters(), strict=True):
        assert torch.equal(mine, plain)  # to the bit
    states = (run.optimizers[0].state_dict() for run in (ours, theirs))
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)


def test_200_updates_are_the_plain_loop(folder: Path) -> None:
    class Keeper(Callback):
        def __init__(self) -> None:
            self.batches: list[tuple[torch.Tensor, ...]] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.batches.append((torch.get_rng_state(), *(tensor.clone() for tensor in batch)))

    torch.manual_seed(3)
    model, keeper = DigitClassifier(MLP()), Keeper()
    plain = copy.deepcopy(model.net)
    trainer = quiet_trainer(folder, [keeper], max_epochs=-1, max_steps=200, limit_val_batches=0)
    use_direct_loop(trainer)
    trainer.fit(model, UCIDigits())

    assert len(keeper.batches) == 200
    optimizer = torch.optim.Adam(plain.parameters())  # as torch has it by default, which is not fused
    for random_state, images, labels in keeper.batches:
        torch.set_rng_state(random_state)  # of the dropout
        optimizer.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    for mine, theirs in zip(model.net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [None, 10])
def test_resuming_goes_on_as_lightning_does(every: int | None, folder: Path) -> None:
    def saver(name: str) -> Callable[[], list[Callback]]:
        return lambda: [ModelCheckpoint(folder / name, every_n_train_steps=every, save_top_k=-1, filename="{step}")]

    ends = {}
    for name, direct in (("theirs", False), ("ours", True)):
        fit(folder, direct, max_epochs=2, callbacks=saver(name))
        saved = sorted(path.name for path in (folder / name).iterdir())
        at = "step=10.ckpt" if every else f"step={PER_EPOCH}.ckpt"
        assert at in saved
        ends[name] = saved, fit(folder, direct, max_epochs=3, ckpt_path=folder / name / at)
    assert ends["ours"][0] == ends["theirs"][0]
    (ours, our_model, our_calls), (theirs, their_model, their_calls) = (ends[name][1] for name in ("ours", "theirs"))
    assert ours.global_step == theirs.global_step
    assert our_calls.calls == their_calls.calls
    for mine, plain in zip(our_model.parameters(), their_model.parameters(), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.filterwarnings("ignore")
def test_an_update_costs_no_more_work_than_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard against slowness that counts work, not seconds."""
    logged, single, gathered, transferred = [], [], [], []
    transfer = UCIDigits.transfer_batch_to_device
    getitems = GatheredDataset.__getitems__
    monkeypatch.setattr(DigitClassifier, "log", lambda *args, **_: logged.append(args))
    monkeypatch.setattr(DigitClassifier, "log_dict", lambda *args, **_: logged.append(args))
    monkeypatch.setattr(GatheredDataset, "__getitem__", lambda *args: single.append(args))
    monkeypatch.setattr(GatheredDataset, "__getitems__", lambda *args: gathered.append(args) or getitems(*args))
    monkeypatch.setattr(UCIDigits, "transfer_batch_to_device", lambda *args: transferred.append(1) or transfer(*args))
    work = {}
    for updates in (10, 30):
        for seen in (logged, single, gathered, transferred):
            seen.clear()
        trainer = quiet_trainer(folder, [], max_epochs=1, limit_train_batches=updates, limit_val_batches=0)
        use_direct_loop(trainer)
        with counted_calls(DirectEpochLoop, monkeypatch) as calls, torch.profiler.profile() as profiler:
            trainer.fit(DigitClassifier(MLP()), UCIDigits())
        ops = {event.key: event.count for event in profiler.key_averages()}
        assert len(logged) == 2  # the learning rate and the epoch's metrics
        assert not single
        assert len(gathered) == 2  # one batch, to see how large it is, then the rest
        work[updates] = calls["python"], len(transferred), ops["aten::linear"], sum(ops.values())

    each = ((after - before) / 20 for before, after in zip(*work.values(), strict=True))
    python, transfers, layers, operations = each
    assert transfers == 1
    assert layers == 3  # the forward pass is taken once
    assert operations <= 260  # torch's, all but a dozen of them its own for forward, backward and Adam
    assert python <= 450  # calls of Python functions, most of them torch's


@contextmanager
def counted_calls(owner: type, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the calls within an epoch's ``run``."""
    calls: Counter[str] = Counter()
    run = owner.run

    def profile(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            calls["python"] += 1

    def counted(*args: Any) -> None:
        sys.setprofile(profile)
        try:
            run(*args)
        finally:
            sys.setprofile(None)

    with monkeypatch.context() as patch:
        patch.setattr(owner, "run", counted)
        yield calls


@pytest.mark.parametrize(
    ("module", "batch_size", "expected"),
    [
        (MLP(), 32, 1),  # 109,184 weights, 6 * 32 operations each: 21 million
        (MLP(), 1024, 8),
        (MLP((512, 256)), 128, 5),
        (MLP(), 10_000, 8),
        (MLP(), None, 8),
        (nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 10)), 32, 8),
    ],
)
def test_threads_are_used_where_they_help(module: nn.Module, batch_size: int | None, expected: int) -> None:
    assert useful_threads(module, batch_size, available=8) == expected


@pytest.mark.parametrize("given", [None, "2"])
def test_training_gives_the_threads_back(given: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Looker(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(torch.get_num_threads())

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    torch.set_num_threads(2)
    trainer = quiet_trainer(folder, [Looker()], max_epochs=1, limit_train_batches=2)
    use_direct_loop(trainer)
    trainer.fit(DigitClassifier(MLP()), UCIDigits())
    assert seen == ([2, 2] if given else [1, 1])
    assert torch.get_num_threads() == 2
