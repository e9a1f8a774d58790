"""The progress of a run, on a terminal and in a log file."""

import shutil
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class EpochLines(ProgressBar):
    """A line for each finished epoch, with its metrics and its seconds; epochs count from 1.

    On a terminal, a bar of the current epoch is below them, with the time left. tqdm draws it at
    most ten times a second: drawing takes longer than a small update.
    """

    FORMAT = (
        "{desc}  {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}  "
        "time left: epoch {remaining}{postfix}"
    )

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.name = ""  # of the current epoch
        self.bar = Tqdm(disable=True)

    def disable(self) -> None:
        """Print nothing: Lightning asks this of every rank but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Print again."""
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember when this run began, and at which epoch."""
        self.begin, self.first = time.perf_counter(), trainer.current_epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line of the epoch before: only now are its training metrics complete."""
        self.on_train_end(trainer, pl_module)
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or -1
        self.name = f"Epoch {epoch:>{len(str(last))}}/{last}" if last > 0 else f"Epoch {epoch}"
        self.validated, self.start = False, time.perf_counter()
        self.bar = Tqdm(
            desc=self.name,
            total=self.total_train_batches,
            bar_format=self.FORMAT,
            ncols=shutil.get_terminal_size().columns - 3,  # room for ^C
            file=sys.stdout,
            leave=False,
            disable=not (self.enabled and sys.stdout.isatty()),
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Draw the bar if it is due."""
        if self.bar.update():
            share = self.bar.n / self.total_train_batches  # 0 of an epoch without end
            done = trainer.current_epoch - self.first + share or 1
            whole = (trainer.max_epochs or 0) - self.first
            left = (time.perf_counter() - self.begin) * (whole / done - 1)
            self.bar.set_postfix_str(f"run {Tqdm.format_interval(left)}" if left > 0 else "")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the epoch has validation metrics of its own."""
        self.validated = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the last epoch's line."""
        if not self.name:
            return
        self.bar.close()
        parts = [self.name]
        for stage in ("train", "val") if self.validated else ("train",):
            loss, acc = (trainer.callback_metrics[f"{stage}/{name}"] for name in ("loss", "acc"))
            parts.append(f"{stage} loss {loss:.4f} acc {acc:6.2%}")
        parts.append(f"{time.perf_counter() - self.start:.1f} s")
        if self.enabled:
            print("  ".join(parts), flush=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar, and the terminal's ^C behind it."""
        self.bar.close()
        if sys.stdout.isatty():
            print(" " * (shutil.get_terminal_size().columns - 1), end="\r", flush=True)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        with Tqdm.external_write_mode():
            print(*args, **kwargs)
