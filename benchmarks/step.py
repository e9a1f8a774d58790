"""Measure where an update's time goes: in the data, the network, the optimizer, or the loop.

    python benchmarks/step.py [--data_dir data] [--rounds 5]

The default recipe's updates are made for an epoch each by a bare loop with a timer between its
parts, by the bare loop without timers, by `fit` without loggers, checkpoints and bar, the same with
torch's own `Adam.step` instead of the fast loop's, and by `fit` with all of them; on the threads
that `fit` would use. Validation is not counted.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import tempfile
import time
from typing import Any

import measure
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn import functional as F

from mnist_lightning import MLP, MNIST, DigitClassifier, fit
from mnist_lightning.data.base import DEFAULT_DATA_DIR
from mnist_lightning.training.fast_loop import useful_threads
from mnist_lightning.training.progress import EpochLines

PARTS = ("gather and scale", "forward and loss", "zero_grad", "backward", "optimizer step")
OFF = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


class UpdateSeconds(Callback):
    """Measures the seconds per update of an epoch, up to the validation at its end."""

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        """Stop; the first validation comes before training."""
        if not trainer.sanity_checking:
            self.seconds = (time.perf_counter() - self.start) / trainer.global_step


def bare_epoch(data: MNIST, net: MLP, optimizer: torch.optim.Optimizer) -> float:
    """Train for an epoch and return the seconds per update."""
    loader = data.train_dataloader()
    start = time.perf_counter()
    for images, labels in loader:
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / len(loader)


def timed_epoch(data: MNIST, net: MLP, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Train for an epoch and return the seconds per update of each part."""
    clock, spent = time.perf_counter, dict.fromkeys(PARTS, 0.0)
    loader = data.train_dataloader()
    batches = iter(loader)
    for _ in range(len(loader)):
        times = [clock()]
        images, labels = next(batches)
        times.append(clock())
        loss = F.cross_entropy(net(images), labels)
        times.append(clock())
        optimizer.zero_grad()
        times.append(clock())
        loss.backward()
        times.append(clock())
        optimizer.step()
        times.append(clock())
        for part, start, end in zip(PARTS, times, times[1:], strict=False):
            spent[part] += end - start
    return {part: seconds / len(loader) for part, seconds in spent.items()}


def hooked_adam(weights: Any) -> torch.optim.Optimizer:
    """Return the recipe's optimizer with a hook: the fast loop then calls its own step."""
    optimizer = torch.optim.Adam(weights, lr=1e-3, fused=True)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def fit_epoch(data_dir: str, optimizer: Any = None, **trainer_kwargs: Any) -> float:
    """Call ``fit`` for an epoch, and return the seconds per update."""
    model = DigitClassifier(MLP(), optimizer) if optimizer else DigitClassifier(MLP())
    clock = UpdateSeconds()
    callbacks = [clock, *trainer_kwargs.pop("callbacks", [])]
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        given = {"log_dir": root, "max_epochs": 1, "callbacks": callbacks, "accelerator": "cpu"}
        fit(model, MNIST(data_dir), **given, **trainer_kwargs)
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_dir", default=DEFAULT_DATA_DIR, help="folder with MNIST; downloaded if missing"
    )
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each")
    args = parser.parse_args()

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    data, net = MNIST(args.data_dir), MLP()
    data.prepare_data()
    data.setup("fit")
    optimizer = DigitClassifier(net).optimizer(net.parameters())
    all_threads = torch.get_num_threads()
    threads = (
        all_threads
        if "OMP_NUM_THREADS" in os.environ
        else useful_threads(net, data.batch_size, all_threads)
    )
    runs = []
    for number in range(args.rounds):
        torch.set_num_threads(threads)
        run = {**timed_epoch(data, net, optimizer), "bare loop": bare_epoch(data, net, optimizer)}
        torch.set_num_threads(all_threads)  # fit chooses for itself
        run["fit, all off"] = fit_epoch(args.data_dir, **OFF)
        run["the same, torch's step"] = fit_epoch(args.data_dir, hooked_adam, **OFF)
        run["fit, all on"] = fit_epoch(args.data_dir, callbacks=[EpochLines()])
        runs.append(run)
        print(
            f"round {number + 1} of {args.rounds}: bare loop {run['bare loop'] * 1e6:.0f} us",
            flush=True,
        )
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    rows = [
        [name, f"{value * 1e6:.0f}", f"{value / medians['fit, all on']:.0%}"]
        for name, value in medians.items()
    ]
    print(f"\n{measure.table(['of an update', 'us', 'share'], rows)}")


if __name__ == "__main__":
    main()
