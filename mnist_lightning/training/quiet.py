"""Hide what Lightning prints that the user cannot act on."""

import logging
import os
import re
import warnings

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


def quieten() -> None:
    """Hide messages that the user cannot act on."""
    # Lightning 2.6 calls what jsonargparse 5 removes.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=f".*({UNHELPFUL_WARNING})")
    for name in (
        "pytorch.utilities.rank_zero",
        "fabric.utilities.rank_zero",
        "fabric.utilities.seed",
    ):
        logging.getLogger(f"lightning.{name}").addFilter(
            is_helpful
        )  # the same function is added once


def is_helpful(record: logging.LogRecord) -> bool:
    """Return whether a log message says something useful."""
    return not UNHELPFUL_MESSAGE.search(record.getMessage())
