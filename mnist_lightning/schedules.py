"""Learning rate schedules whose length is that of the run: no number of steps to count.

The highest learning rate is the optimizer's. ``DigitClassifier`` gives ``total_steps``, the run's
number of updates.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, ReduceLROnPlateau
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR


class OneCycle(OneCycleLR):
    """Rise to the optimizer's learning rate, then fall to almost zero, both along half a cosine.

    It steps after each update. Adam's first beta falls and rises meanwhile (Smith and Topin 2019;
    torch's OneCycleLR).

    Args:
        optimizer: The optimizer.
        total_steps: Number of updates; the run's by default.
        warmup: Share of them in which the learning rate rises, in [0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None = None, warmup: float = 0.3
    ) -> None:
        highest = [group["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer, highest, total_steps, pct_start=warmup)


class Cosine(LambdaLR):
    """Rise linearly to the optimizer's learning rate, then fall to zero along half a cosine.

    It steps after each update.

    Args:
        optimizer: The optimizer.
        total_steps: Number of updates; the run's by default.
        warmup: Share of them in which the learning rate rises, in [0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None = None, warmup: float = 0.05
    ) -> None:
        if total_steps is None:
            raise ValueError(
                "Cosine needs total_steps, or a run with an end: set max_epochs or max_steps"
            )
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup must be in [0, 1], got {warmup}")
        rise = warmup * total_steps

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            return (
                1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, total_steps - rise)))
            ) / 2

        super().__init__(optimizer, factor)


class Plateau(ReduceLROnPlateau):
    """Lower the learning rate when a metric of the validation no longer improves.

    Args:
        optimizer: The optimizer.
        total_steps: Number of updates, for the warm-up; the run's by default.
        warmup: Share of them in which the learning rate rises linearly from a 25th of the
            optimizer's, in [0, 1].
        monitor: The metric; it is watched for its smallest value.
        factor: What the learning rate is multiplied with.
        patience: Epochs without an improvement that are tolerated.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.0,
        monitor: str = "val/loss",
        factor: float = 0.3,
        patience: int = 2,
    ) -> None:
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup must be in [0, 1], got {warmup}")
        if warmup and total_steps is None:
            raise ValueError(
                "a warm-up needs total_steps, or a run with an end: set max_epochs or max_steps"
            )
        super().__init__(optimizer, monitor, factor=factor, patience=patience)
        self.warmup_steps = round(warmup * (total_steps or 0))


def make_schedules(
    make: LRSchedulerCallable | None,
    optimizer: Optimizer,
    interval: str,
    updates: Callable[[], float],
) -> list[dict[str, Any]]:
    """Return Lightning's settings of a scheduler, and of its warm-up if it has one.

    Args:
        make: Function from the optimizer to the scheduler; None makes none. One that takes
            ``total_steps`` gets the run's number of updates, and steps after each.
        optimizer: The optimizer.
        interval: When any other one steps: ``epoch`` or ``step``.
        updates: Returns the run's number of updates, infinite for one without an end.
    """
    if make is None:
        return []
    given = getattr(make, "keywords", {})  # the command line makes a partial, with every argument
    takes_length = "total_steps" in {*given, *inspect.signature(make).parameters}
    length = {}
    if takes_length and not (given.get("total_steps") or given.get("epochs")):
        number = updates()
        if math.isfinite(number):
            length["total_steps"] = int(number)
    scheduler = make(optimizer, **length)
    if takes_length and not isinstance(scheduler, Plateau):
        interval = "step"
    monitor = getattr(scheduler, "monitor", None)
    schedules = [{"scheduler": scheduler, "interval": interval, "monitor": monitor}]
    if isinstance(scheduler, Plateau) and scheduler.warmup_steps:
        rise = LinearLR(optimizer, start_factor=1 / 25, total_iters=scheduler.warmup_steps)
        schedules.append({"scheduler": rise, "interval": "step"})
    return schedules
