"""Hide what Lightning prints that the user cannot act on."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Lightning's loggers.
LOGGERS = ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed")

# Log messages that another line says, or that say nothing useful.
UNHELPFUL_MESSAGE = re.compile(
    r"💡|Seed set to|GPU available|TPU available: False|Restor(ing|ed all) states|"
    r"`Trainer.fit` stopped: `max_epochs|Detected KeyboardInterrupt|"
    r"Loading `train_dataloader` to estimate"
)
# Warnings that the user cannot act on.
UNHELPFUL_WARNING = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated|"  # Lightning 2.6 on torch 2.15
    # All is logged per epoch.
    r"The number of training batches \(\d+\) is smaller than the logging interval|"
    r"Checkpoint directory .* exists and is not empty|"  # a run that is resumed
    r"Total length of `list` across ranks is zero|"  # without validation images
    # Shown on every machine with SLURM.
    r"The `srun` command is available on your system but is not used"
)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide messages that the user cannot act on for a while; as ``@quiet()``, during a function."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in LOGGERS]
    loud = [logger for logger in loggers if is_helpful not in logger.filters]
    for logger in loud:
        logger.addFilter(is_helpful)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*({UNHELPFUL_WARNING})")
            yield
    finally:
        for logger in loud:
            logger.removeFilter(is_helpful)


def is_helpful(record: logging.LogRecord) -> bool:
    """Return whether a log message says something useful."""
    return not UNHELPFUL_MESSAGE.search(record.getMessage())
