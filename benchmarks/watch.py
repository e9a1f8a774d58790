"""Callbacks that measure a fit from inside: what an update takes, and what the process holds in memory."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class UpdateSeconds(Callback):
    """Writes the seconds per update of each epoch, without validation and what comes after it.

    Args:
        path: JSON file to write.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.seconds_per_update: list[float] = []
        self.seconds = 0.0
        self.start: float | None = None  # while training
        self.first_update = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        self.seconds, self.first_update = 0.0, trainer.global_step
        self.start = time.perf_counter()

    def on_train_batch_start(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.start is None:
            self.start = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        self._stop()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        self._stop()
        self.seconds_per_update.append(self.seconds / (trainer.global_step - self.first_update))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        self.path.write_text(json.dumps(self.seconds_per_update))

    def _stop(self) -> None:
        if self.start is not None:
            self.seconds += time.perf_counter() - self.start
            self.start = None


class PeakMemory(Callback):
    """Writes the most the process has held in MB: all of it, and without the pages of mapped files.

    Linux keeps the first figure; the second is looked at every few milliseconds from when the callback is made, which
    is before data are loaded.

    Args:
        path: JSON file to write.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.ended = threading.Event()
        self.peak_anonymous = 0.0
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.ended.wait(0.01):
            self.peak_anonymous = max(self.peak_anonymous, _status("RssAnon"))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        self.ended.set()
        self.thread.join()
        self.path.write_text(json.dumps({"peak_rss_mb": _status("VmHWM"), "peak_anonymous_mb": self.peak_anonymous}))


def _status(name: str) -> float:
    """Return a field of this process's status in MB."""
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6
