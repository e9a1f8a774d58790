"""What every check is given."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from lightning.fabric import Fabric

from mnist_lightning.data.base import DigitDataModule

TIMEOUT = timedelta(seconds=60)  # for all processes to come, and for each to say what it found


@dataclass
class Site:
    """Where a run would take place.

    Args:
        fabric: What joins the processes, or why there is none.
        stranded: Why the processes did not join; empty where they did.
        data: The data module.
        root: The folder of runs.
        stack: What is to be cleaned up once every process has done its checks.
    """

    fabric: Fabric | str
    stranded: str
    data: DigitDataModule
    root: Path
    stack: ExitStack

    @property
    def device(self) -> torch.device:
        """The process's device; the CPU where the devices asked for are not there."""
        return torch.device("cpu") if isinstance(self.fabric, str) else self.fabric.device
