"""The training recipe as a LightningModule: which loss, which metrics, which optimizer."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from mnist_lightning.checkpoints import HYPERPARAMETERS, check_made_by, check_names, load_checkpoint
from mnist_lightning.errors import InputError

Stage = Literal["train", "val", "test"]


class DigitClassifier(L.LightningModule):
    """Classify digits with a network, cross-entropy and accuracy.

    It logs ``<stage>/loss`` and ``<stage>/acc`` once per epoch, and the learning rate as ``lr``. After a test epoch
    ``test_counts`` is the confusion matrix ``(10, 10)``: rows true, columns predicted.

    Args:
        net: Network from float images ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``.
        optimizer: Makes the optimizer from the parameters. The default is Keras's Adam.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; none by default.
        lr_scheduler_interval: When the scheduler steps: after each epoch or after each update (OneCycleLR needs
            ``step``).
    """

    train_loss: MeanMetric
    train_acc: MulticlassAccuracy
    PENDING = 100  # updates whose training metrics are added up in one go

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3, fused=True),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        with warnings.catch_warnings(action="ignore"):  # of the module among them, which goes in a moment
            self.save_hyperparameters()
        # The command line stores these as class paths. Live objects would make a checkpoint that weights-only
        # loading refuses, so they stay out of it and are passed again to load_from_checkpoint.
        for name in ("net", "optimizer", "lr_scheduler"):
            if callable(self.hparams[name]):
                del self.hparams[name]
        self.net = net
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval

        # validate_args would look at every batch for labels outside 0-9; the data modules checked them once.
        per_class: dict[str, Any] = {"num_classes": 10, "validate_args": False}
        for stage in ("train", "val", "test"):
            setattr(self, f"{stage}_loss", MeanMetric())
            setattr(self, f"{stage}_acc", MulticlassAccuracy(average="micro", **per_class))
        self.test_confusion = MulticlassConfusionMatrix(**per_class)  # rows true, columns predicted
        self.test_counts: Tensor | None = None
        self._pending: list[tuple[int, Tensor, Tensor, Tensor]] = []  # index, loss, logits, labels of training batches
        self._lr = 0.0  # that the epoch started with: at its end the scheduler has already moved on

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *, weights_only: bool | None = True, **kwargs: Any
    ) -> Self:
        """Make the model that a checkpoint file is of.

        Args:
            checkpoint_path: The file.
            weights_only: Whether to refuse code in the file, and names in it of classes that are not torch's or ours.
            **kwargs: What Lightning takes, and arguments of ``__init__`` that take the place of the checkpoint's.

        Raises:
            InputError: If the file is refused, or is no checkpoint of this class.
        """
        if weights_only is not False:
            path = Path(checkpoint_path)
            checkpoint = load_checkpoint(path)
            check_made_by(path, checkpoint, cls)
            for key in HYPERPARAMETERS:
                taken = {name: value for name, value in checkpoint.get(key, {}).items() if name not in kwargs}
                check_names(path, {key: taken})
        return super().load_from_checkpoint(checkpoint_path, weights_only=weights_only, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of float images ``(B, 1, 28, 28)`` in [0, 1]."""
        logits: Tensor = self.net(images)
        return logits

    def _loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch  # (B, 1, 28, 28), (B,)
        logits = self(images)  # (B, 10)
        return F.cross_entropy(logits, labels), logits

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: Stage) -> Tensor:
        loss, logits = self._loss(batch)
        getattr(self, f"{stage}_loss").update(loss, weight=len(logits))
        getattr(self, f"{stage}_acc").update(logits, batch[1])
        return logits

    def _measure_pending(self) -> None:
        """Update the training metrics with the batches since the last time: one by one would slow down training."""
        if self._pending:
            _, losses, logits, labels = zip(*self._pending, strict=True)
            self._pending.clear()
            sizes = torch.tensor([len(batch) for batch in labels], device=self.device)
            self.train_loss.update(torch.stack(losses), weight=sizes)
            self.train_acc.update(torch.cat(logits), torch.cat(labels))

    def _log_epoch(self, stage: Stage) -> None:
        metrics = {f"{stage}/{name}": getattr(self, f"{stage}_{name}") for name in ("loss", "acc")}
        # At an epoch's end a progress bar would still show the training metrics of the epoch before.
        self.log_dict(metrics, prog_bar=stage != "train")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the batch's mean cross-entropy."""
        if len(self._pending) >= self.PENDING:  # before this batch is one of them: its update may yet fail
            self._measure_pending()
        loss, logits = self._loss(batch)
        self._pending.append((batch_idx, loss.detach(), logits.detach(), batch[1]))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add the batch to the validation metrics; return its logits ``(B, 10)``, for callbacks."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add the batch to the test metrics; return its logits ``(B, 10)``, for callbacks."""
        logits = self._evaluate(batch, "test")
        self.test_confusion.update(logits, batch[1])
        return logits

    def on_train_epoch_start(self) -> None:
        """Note the learning rate."""
        self._lr = float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics, and the learning rate it started with."""
        self._measure_pending()
        if self.train_loss.update_called:  # not where an epoch that was over is resumed without its metrics
            self._log_epoch("train")
            self.log("lr", self._lr, sync_dist=True)

    def epoch_state(self, batches: int) -> dict[str, Any]:
        """Return what the training metrics know of the epoch's first batches, on the CPU: to go on with the epoch."""
        metrics: dict[str, Any] = {"train_loss": self.train_loss, "train_acc": self.train_acc}
        return {
            "lr": self._lr,
            "pending": [
                (index, *(value.cpu() for value in batch)) for index, *batch in self._pending if index < batches
            ],
            "metrics": {
                name: (metric._update_count, {key: value.cpu() for key, value in metric.metric_state.items()})
                for name, metric in metrics.items()
            },
        }

    def load_epoch_state(self, state: dict[str, Any]) -> None:
        """Go on from what ``epoch_state`` returned.

        Raises:
            ValueError: If a value is of another shape or type than a metric's.
        """
        self._lr = float(state["lr"])
        self._pending = []
        for index, *batch in state["pending"][-self.PENDING :]:
            loss, logits, labels = (value.to(self.device) for value in batch)
            if loss.shape != () or logits.shape != (len(labels), 10):
                raise ValueError(f"a batch has loss {tuple(loss.shape)}, logits {tuple(logits.shape)}")
            self._pending.append((int(index), loss, logits, labels))
        for name in ("train_loss", "train_acc"):
            metric = getattr(self, name)
            update_count, values = state["metrics"][name]
            metric._update_count = int(update_count)
            for key, own in metric.metric_state.items():
                if (values[key].shape, values[key].dtype) != (own.shape, own.dtype):
                    raise ValueError(f"{name}.{key} is {values[key].dtype} {tuple(values[key].shape)}")
                setattr(metric, key, values[key].to(self.device))

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics and keep the confusion matrix in ``test_counts``."""
        self._log_epoch("test")
        self.test_counts = self.test_confusion.compute()
        self.test_confusion.reset()

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Classify a batch whose first element is the images; labels, if there are any, are not used.

        Returns:
            ``digit`` ``(B,)``, its probability ``confidence`` ``(B,)``, and ``probabilities`` ``(B, 10)``.
        """
        probabilities = self(batch[0]).float().softmax(dim=1)
        confidence, digit = probabilities.max(dim=1)
        return {"digit": digit, "confidence": confidence, "probabilities": probabilities}

    def configure_optimizers(self) -> Any:
        """Call the factories, the scheduler's if there is one.

        Raises:
            InputError: If one refuses its settings, such as a negative learning rate.
        """
        try:
            optimizer = self.optimizer(self.parameters())
            scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        except (ValueError, TypeError) as error:
            raise InputError(f"the optimizer or the learning rate scheduler was refused: {error}") from error
        if scheduler is None:
            return optimizer
        schedule: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            schedule["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}
