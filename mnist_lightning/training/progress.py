"""The progress of a run: on a terminal, in a notebook and in a log file."""

import shutil
import sys
import time
from functools import cached_property
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar
from tqdm import tqdm

FORMAT = "{desc}  {percentage:3.0f}% |{bar}| {remaining} left{postfix}"


class NotebookLine:
    """A file of one line, shown in one place of a notebook, with or without ipywidgets."""

    encoding = "utf-8"  # otherwise tqdm draws with ASCII

    def __init__(self) -> None:
        from IPython.display import display  # here, since only notebooks have it

        empty = {"text/plain": ""}
        self.shown = display(empty, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def write(self, line: str) -> None:
        """Show a line instead of the one before."""
        self.shown.update({"text/plain": line.strip()}, raw=True)

    def flush(self) -> None:
        """Do nothing: each line is shown at once."""


class Bar(ProgressBar):
    """A bar on a terminal or in a notebook, which vanishes at its end; elsewhere there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.bar = tqdm(disable=True)

    @cached_property
    def screen(self) -> Any:
        """Where bars are drawn; None for a pipe or a log file."""
        if "ipykernel" in sys.modules:
            return NotebookLine()
        return sys.stdout if sys.stdout.isatty() else None

    def disable(self) -> None:
        """Print nothing: Lightning asks this of every rank but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Print again."""
        self.enabled = True

    def open(self, name: str, total: float) -> Any:
        """Begin a bar of so many steps, infinity if their number is not known, and return it."""
        self.bar.close()
        self.bar = tqdm(
            desc=name,
            total=total,
            bar_format=FORMAT,
            ncols=shutil.get_terminal_size().columns - 3,  # room for ^C
            file=self.screen,
            leave=False,
            disable=not (self.enabled and self.screen),
        )
        return self.bar

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar, and the terminal's ^C behind it."""
        self.bar.close()
        if sys.stdout.isatty():
            print(" " * (shutil.get_terminal_size().columns - 1), end="\r", flush=True)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        with tqdm.external_write_mode():
            print(*args, **kwargs)


class EvaluationBar(Bar):
    """A bar of a validation, a test or a prediction by itself."""

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, with the number of batches of all the data."""
        stage: Any = trainer.state.stage
        batches = getattr(trainer, f"num_{stage.dataloader_prefix}_batches")
        self.open(stage.value.capitalize(), sum(batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Draw the bar if it is due."""
        self.bar.update()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self.bar.close()

    on_validation_start = on_predict_start = on_test_start
    on_validation_batch_end = on_predict_batch_end = on_test_batch_end
    on_validation_end = on_predict_end = on_test_end


class EpochLines(Bar):
    """A line for each finished epoch, with its metrics and its seconds; epochs count from 1.

    A bar of the current epoch has the latest updates' loss and accuracy, and the time left. tqdm
    draws it at most ten times a second: drawing takes longer than a small update.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = ""  # of the current epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember when this run began, and at which epoch."""
        self.begin, self.first = time.perf_counter(), trainer.current_epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line of the epoch before: only now are its training metrics complete."""
        self.on_train_end(trainer, pl_module)
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or -1
        self.name = f"Epoch {epoch:>{len(str(last))}}/{last}" if last > 0 else f"Epoch {epoch}"
        self.validated, self.start = False, time.perf_counter()
        self.open(self.name, self.total_train_batches)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Draw the bar if it is due."""
        if not self.bar.update():
            return
        if recent := pl_module.recent_metrics():  # type: ignore[operator]
            loss, accuracy = recent
            text = f"{self.name}  loss {loss:.3f} acc {accuracy:.1%}"
            self.bar.set_description_str(text, refresh=False)
        share = self.bar.n / self.total_train_batches  # 0 of an epoch without end
        done = trainer.current_epoch - self.first + share or 1
        whole = (trainer.max_epochs or 0) - self.first
        left = (time.perf_counter() - self.begin) * (whole / done - 1)
        self.bar.set_postfix_str(f"run {tqdm.format_interval(left)}" if left > 0 else "")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so in the bar."""
        self.bar.set_description_str(f"{self.name}  validation")

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


def with_bar(callbacks: list[Callback], bar: Bar, is_wanted: bool | None) -> list[Callback]:
    """Return the callbacks with a bar before them, unless there is one, or none is wanted."""
    has_bar = any(isinstance(each, ProgressBar) for each in callbacks)
    return callbacks if has_bar or is_wanted is False else [bar, *callbacks]
