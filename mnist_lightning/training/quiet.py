"""Hide what Lightning prints that the user cannot act on."""

import logging
import os
import re
import warnings

NOT_NEWS = re.compile(  # log messages that another line says, or that say nothing useful
    r"💡|Seed set to|GPU available|TPU available: False|Restor(ing|ed all) states|`Trainer.fit` stopped: `max_epochs|"
    r"Detected KeyboardInterrupt|Loading `train_dataloader` to estimate"
)
NO_WARNING = (  # warnings that the user cannot act on
    r"`isinstance\(treespec, LeafSpec\)` is deprecated|"  # Lightning 2.6 on torch 2.15
    r"The number of training batches \(\d+\) is smaller than the logging interval|"  # all is logged per epoch
    r"Checkpoint directory .* exists and is not empty|"  # a run that is resumed
    r"Total length of `list` across ranks is zero|"  # val_fraction 0: there are no validation images
    r"The `srun` command is available on your system but is not used"  # shown on every machine with SLURM
)


def quieten() -> None:
    """Hide messages that the user cannot act on."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what version 5 removes
    warnings.filterwarnings("ignore", message=f".*({NO_WARNING})")
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{name}").addFilter(is_news)  # the same function is added once


def is_news(record: logging.LogRecord) -> bool:
    """Return whether a log message says something useful."""
    return not NOT_NEWS.search(record.getMessage())
