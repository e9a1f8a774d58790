import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.callbacks import StochasticWeightAveraging as SWA
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning.networks import MLP
from mnist_lightning.training.fast_loop import FastEpochLoop, use_fast_loop, useful_threads

BATCHES, SIZE = 12, 8
IMAGES = torch.rand(
    BATCHES * SIZE - 2, 1, 28, 28, generator=torch.Generator().manual_seed(0)
)  # a smaller last batch
LABELS = torch.arange(len(IMAGES)) % 10


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in another order differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Finished:
    """A loader of our own that yields finished batches."""

    batch_size = SIZE

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(IMAGES))
        return iter([(IMAGES[rows], LABELS[rows]) for rows in order.split(SIZE)])


class Endless(Finished):
    """One whose length nobody knows."""

    __len__ = None  # type: ignore[assignment]


class Classifier(L.LightningModule):
    def __init__(
        self,
        optimizer: Any = None,
        scheduler: Any = None,
        interval: str = "step",
        loader: Any = None,
    ) -> None:
        super().__init__()
        self.net = MLP((16,))
        self.optimizer, self.scheduler, self.interval = optimizer, scheduler, interval
        self.loader = loader or (
            lambda: DataLoader(TensorDataset(IMAGES, LABELS), SIZE, shuffle=True)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        make = self.optimizer or (lambda weights: torch.optim.Adam(weights, fused=True))
        optimizer = make(self.parameters())
        if self.scheduler is None:
            return optimizer
        monitor = (
            "val_loss" if self.interval == "epoch" else "from_callback"
        )  # logged before the schedule steps
        schedule = {
            "scheduler": self.scheduler(optimizer),
            "interval": self.interval,
            "monitor": monitor,
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def train_dataloader(self) -> Any:
        return self.loader()

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(IMAGES[:20], LABELS[:20]), 10)


class LogsSteps(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("step_loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss, "extra": batch_idx}


def hooked(base: type, hook: str, function: Callable[..., Any]) -> Any:
    return type("Hooked", (base,), {hook: function})


class NoGradSGD(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        closure()
        for weight in self.param_groups[0]["params"]:
            weight -= 0.1 * weight.grad


class Recorder(Callback):
    """Keeps what a user's callback sees."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        sums = batch[0].sum().item()
        hook = pl_module._current_fx_name
        self.calls.append(("start", trainer.global_step, batch_idx, sums, hook))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.log("from_callback", float(batch_idx), on_step=True, on_epoch=True)
        loss = outputs["loss"].item() if "loss" in outputs else None
        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.calls.append(
            ("end", trainer.global_step, batch_idx, loss, learning_rate, sorted(outputs))
        )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.calls.append(
            ("validated", trainer.global_step, trainer.callback_metrics["val_loss"].item())
        )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        metrics = {name: value.item() for name, value in trainer.logged_metrics.items()}
        self.calls.append(("epoch", trainer.current_epoch, metrics))


class Reloads(Recorder):
    """Logs nothing, and puts the optimizer's state of step 3 back after step 7."""

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.calls.append(
            ("end", trainer.global_step, outputs["loss"].item(), trainer.callback_metrics)
        )
        if trainer.global_step == 3:
            self.state = copy.deepcopy(trainer.optimizers[0].state_dict())
        if trainer.global_step == 7:
            trainer.optimizers[0].load_state_dict(self.state)


def add_norm(module: Any) -> None:
    module.net = nn.Sequential(module.net, nn.BatchNorm1d(10))


def skip_some(module: Any, batch: Any, batch_idx: int) -> Any:
    return None if batch_idx % 3 == 1 else Classifier.training_step(module, batch, batch_idx)


def freeze(module: Any) -> None:
    module.net.layers[1].weight.requires_grad_(module.current_epoch != 1)


def clip(module: Any, optimizer: Any) -> None:
    nn.utils.clip_grad_value_(module.parameters(), 1e-3)


def keep_gradients(recorder: Any, trainer: Any, module: Any) -> None:
    recorder.calls.append(("gradient", sum(p.grad.abs().sum().item() for p in module.parameters())))


def one_cycle(optimizer: Any) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=0.01, total_steps=100)


def plateau(optimizer: Any) -> Any:
    return ReduceLROnPlateau(optimizer, patience=0)


def fit(
    folder: Path, is_fast: bool, module: Any = Classifier, recorder: Any = Recorder, **settings: Any
) -> Any:
    L.seed_everything(7, verbose=False)
    callback, ckpt_path = settings.pop("callback", Callback)(), settings.pop("ckpt_path", None)
    own = {
        name: settings.pop(name)
        for name in ("optimizer", "scheduler", "interval", "loader")
        if name in settings
    }
    model, calls = module(**own), recorder()
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        **settings,
    }
    trainer = L.Trainer(callbacks=[calls, callback], **settings)
    if is_fast:
        use_fast_loop(trainer)
    trainer.fit(model, ckpt_path=ckpt_path, weights_only=False)
    return trainer, model, calls.calls


normed = hooked(Classifier, "configure_model", add_norm)
FAST: dict[str, dict[str, Any]] = {
    "OneCycle, by step": {"scheduler": one_cycle},
    "a schedule by epoch": {"scheduler": partial(ExponentialLR, gamma=0.5), "interval": "epoch"},
    "a plateau schedule by epoch": {"scheduler": plateau, "interval": "epoch"},
    "a plateau schedule by step": {"scheduler": plateau},
    "EMA": {"callback": partial(EMAWeightAveraging, decay=0.9)},
    "SWA": {"callback": partial(SWA, 0.01, swa_epoch_start=1), "module": normed},
    "SWA of one batch": {
        "callback": partial(SWA, 0.01, swa_epoch_start=1),
        "module": normed,
        "limit_train_batches": 1,
    },
    "max_steps": {"max_steps": 17},
    "limited batches": {"limit_train_batches": 0.5, "limit_val_batches": 1},
    "overfit_batches": {"overfit_batches": 3},
    "val_check_interval": {"val_check_interval": 5},
    "validation across epochs": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "validation every second epoch": {"check_val_every_n_epoch": 2},
    "fast_dev_run": {"fast_dev_run": 3},
    "early stopping": {
        "callback": partial(EarlyStopping, "val_loss", min_delta=9.0, patience=1),
        "max_epochs": 9,
    },
    "min_steps": {
        "callback": partial(EarlyStopping, "val_loss", min_delta=9.0, patience=0),
        "min_steps": 20,
    },
    "each step logged, a dict returned": {
        "module": LogsSteps,
        "logger": True,
        "log_every_n_steps": 3,
    },
    "skipped batches": {"module": hooked(Classifier, "training_step", skip_some)},
    "LBFGS": {"optimizer": partial(torch.optim.LBFGS, max_iter=3), "max_steps": 3},
    "a step under no_grad": {"optimizer": NoGradSGD},
    "AdamW": {
        "optimizer": partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
        "scheduler": one_cycle,
    },
    "an Adam that is not fused": {"optimizer": torch.optim.Adam},
    "a reloaded optimizer, no step logged": {
        "recorder": Reloads,
        "logger": True,
        "log_every_n_steps": 1,
    },
    "frozen weights": {
        "module": hooked(Classifier, "on_train_epoch_start", freeze),
        "max_epochs": 3,
    },
    "finished batches": {"loader": Finished},
    "unknown length": {"loader": Endless},
    "unknown length, limited": {"loader": Endless, "limit_train_batches": 5},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true", "optimizer": torch.optim.SGD},
    "double precision": {"precision": "64-true"},
    "anomaly detection": {"detect_anomaly": True},
    "reloaded loaders": {"max_steps": 30, "reload_dataloaders_every_n_epochs": 1},
}
STOCK: dict[str, dict[str, Any]] = {
    "accumulated gradients": {"accumulate_grad_batches": 3},
    "clipped gradients": {"gradient_clip_val": 0.01},
    "a profiler": {"profiler": "simple"},
    "a transfer hook": {
        "module": hooked(Classifier, "on_after_batch_transfer", lambda _, b, __: (b[0] / 2, b[1]))
    },
    "a hook inside the update": {"module": hooked(Classifier, "on_before_optimizer_step", clip)},
    "a hook that ends the epoch": {
        "module": hooked(Classifier, "on_train_batch_start", lambda _, __, i: -(i == 5))
    },
    "a callback's hook inside the update": {
        "recorder": hooked(Recorder, "on_after_backward", keep_gradients)
    },
}


def assert_same(ours: Any, theirs: Any) -> None:
    """Check that two fits agree: callbacks' calls, weights, optimizer state, and every counter."""
    assert ours[2] == theirs[2] != []
    assert ours[0].fit_loop.state_dict() == theirs[0].fit_loop.state_dict()
    for part in (lambda run: run[1].state_dict(), lambda run: run[0].optimizers[0].state_dict()):
        torch.testing.assert_close(part(ours), part(theirs), rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [*FAST, *STOCK])
def test_the_fast_loop_does_what_lightning_does(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kwargs = (FAST | STOCK)[case]
    theirs = fit(folder, False, **kwargs)
    updates, update = [], FastEpochLoop._update
    monkeypatch.setattr(FastEpochLoop, "_update", lambda *args: updates.append(1) or update(*args))
    assert_same(fit(folder, True, **kwargs), theirs)
    assert bool(updates) == (case in FAST)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [None, 5])
def test_resuming_does_what_lightning_does(every: int | None, folder: Path) -> None:
    ends = {}
    for is_fast in (False, True):
        saver = ModelCheckpoint(
            folder / str(is_fast), filename="{step}", every_n_train_steps=every, save_top_k=-1
        )
        fit(folder, is_fast, callback=lambda saver=saver: saver)
        ckpt_path = folder / str(is_fast) / f"step={every or BATCHES}.ckpt"
        ends[is_fast] = fit(folder, is_fast, max_epochs=3, ckpt_path=ckpt_path)
    assert_same(ends[True], ends[False])


def test_updates_are_those_of_a_plain_loop(folder: Path) -> None:
    class Keeper(Recorder):
        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            self.calls.append((torch.get_rng_state(), *batch))

    torch.manual_seed(7)
    plain = Classifier().net
    _, model, batches = fit(folder, True, recorder=Keeper, max_epochs=4, limit_val_batches=0)
    optimizer = torch.optim.Adam(plain.parameters())  # torch's default, which is not fused
    for random_state, images, labels in [call for call in batches if isinstance(call[0], Tensor)]:
        torch.set_rng_state(random_state)  # of the dropout
        optimizer.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    torch.testing.assert_close(model.net.state_dict(), plain.state_dict(), rtol=0, atol=1e-6)


CONVOLUTION = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 10))
SIZES = [
    (MLP(), 32, 1),
    (MLP(), 1024, 6),
    (MLP((512, 256)), 128, 4),
    (MLP(), None, 8),
    (CONVOLUTION, 32, 8),
]


@pytest.mark.parametrize(("module", "batch_size", "expected"), SIZES)
def test_threads_are_used_where_they_help(
    module: nn.Module, batch_size: int | None, expected: int
) -> None:
    assert useful_threads(module, batch_size, available=8) == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fails_in", [None, "on_train_batch_end", "on_validation_end"])
@pytest.mark.parametrize("given", [None, "2"])
@pytest.mark.parametrize("accumulate", [1, 2])  # the fast way and Lightning's
def test_the_threads_are_given_back(
    fails_in: Any, given: Any, accumulate: int, folder: Path, monkeypatch: Any
) -> None:
    class Looker(Recorder):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(torch.get_num_threads())

    def fail(*_: Any) -> None:
        raise RuntimeError("as ordered")

    seen: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    torch.set_num_threads(2)
    recorder = hooked(Looker, fails_in, fail) if fails_in else Looker
    with pytest.raises(RuntimeError, match="as ordered") if fails_in else nullcontext():
        fit(folder, True, recorder=recorder, max_epochs=1, accumulate_grad_batches=accumulate)
    assert set(seen) == {int(given or 1)}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("module", "version"), [(L, "2.7.0"), (torch, "2.30.1+cpu"), (torch, "2.1.4")]
)
def test_untested_versions_use_the_stock_loop(
    module: Any, version: str, folder: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "__version__", version)
    trainer = L.Trainer(default_root_dir=folder, logger=False, accelerator="cpu")
    stock = trainer.fit_loop.epoch_loop
    with pytest.warns(UserWarning, match="not tested with .* training is only slower"):
        use_fast_loop(trainer)
    assert trainer.fit_loop.epoch_loop is stock


def test_a_lightning_without_its_private_names_uses_the_stock_loop() -> None:
    code = """
import sys, lightning
sys.modules["lightning.pytorch.loops.training_epoch_loop"] = None
from mnist_lightning.training.fast_loop import use_fast_loop
use_fast_loop(lightning.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("training is only slower") == 1
