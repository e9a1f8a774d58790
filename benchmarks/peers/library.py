"""The default recipe with this package's library, without loggers, checkpoints or a progress bar.

python benchmarks/peers/library.py DATA_DIR EPOCHS SEED
"""

import tempfile
import time

import torch
from lightning.pytorch.callbacks import Callback
from peer import arguments, load, report

from mnist_lightning import MLP, MNIST, DigitClassifier, fit


class Clock(Callback):
    """Measure the seconds of training: without a run folder there is no run.json."""

    def on_fit_start(self, *args):
        """Start."""
        self.start = time.perf_counter()

    def on_fit_end(self, *args):
        """Stop."""
        self.seconds = time.perf_counter() - self.start


data_dir, epochs, seed = arguments()
off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
torch.manual_seed(seed)
clock = Clock()
with tempfile.TemporaryDirectory() as root:
    run = fit(
        DigitClassifier(MLP()),
        MNIST(data_dir),
        seed=seed,
        log_dir=root,
        max_epochs=epochs,
        callbacks=[clock],
        **off,
    )
    images, labels = load(data_dir)[1]
    report(clock.seconds, (run.predict(images).digits == labels).mean().item())
