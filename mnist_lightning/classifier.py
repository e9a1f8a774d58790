"""The training recipe as a LightningModule: loss, metrics, optimizer and schedule.

The core, 4 of 6. Before: ``data/mnist.py`` reads the images. After: ``training/fit.py`` trains.
"""

import warnings
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from mnist_lightning.checkpoints import (
    from_settings,
    is_plain,
    load_weights,
    plain,
    read_checkpoint,
    to_settings,
)
from mnist_lightning.errors import InputError
from mnist_lightning.inference import VARIES, compiled_in_place, logits_of, varies
from mnist_lightning.schedules import make_schedules

Stage = Literal["train", "val", "test"]
Batch = tuple[Tensor, Tensor]


class DigitClassifier(L.LightningModule):
    """Classify digits with a network, cross-entropy and accuracy.

    It logs ``<stage>/loss`` and ``<stage>/acc`` once per epoch, and the learning rate as ``lr``.
    After a test ``test_confusion.compute()`` is the confusion matrix ``(10, 10)``: rows true,
    columns predicted.

    Args:
        net: Network from float images ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``.
        optimizer: Function from the parameters to the optimizer. The default is Adam with Keras's
            settings.
        lr_scheduler: Function from the optimizer to the learning rate scheduler, such as OneCycle,
            Cosine or Plateau; none by default. One that takes ``total_steps`` gets the run's number
            of updates, and steps after each.
        lr_scheduler_interval: When any other scheduler steps: after each epoch or after each
            update.
        label_smoothing: Share of each training label that is spread over all digits (Szegedy et al.
            2016), in [0, 1).
        temperature: What logits are divided by in training, a teacher's too (Hinton et al. 2015).
            Above 1 it makes the trained network more certain, which undoes what label smoothing
            does to its confidence.

    Raises:
        InputError: If a number is out of its range.
    """

    train_loss: MeanMetric
    train_acc: MulticlassAccuracy
    # Updates whose training metrics are computed together: one by one would slow down training.
    MEASURED_AT_ONCE = 100

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3, fused=True),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        if not temperature > 0:
            raise InputError(f"temperature must be above 0, got {temperature}")
        net = compiled_in_place(net)
        # As plain values: a checkpoint with objects could run code, and weights-only loading
        # refuses it. Lightning warns of the network, which becomes its settings here.
        with warnings.catch_warnings(action="ignore"):
            self.save_hyperparameters()
        given = dict(self.hparams)
        self.hparams.clear()
        for name, value in given.items():
            value = to_settings(value) if isinstance(value, nn.Module) else plain(value)
            if value is not None and not name.startswith("_") and is_plain(value):
                self.hparams[name] = value
        self.net = net
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.label_smoothing, self.temperature = label_smoothing, temperature
        self.teachers: list[nn.Module] = []  # in a list: they are neither trained nor saved
        # Of Lightning's LearningRateFinder, which sets the optimizer's rate too.
        self.lr: float | None = None

        # validate_args would look at every batch for labels outside 0-9, which the data have not.
        per_class: dict[str, Any] = {"num_classes": 10, "validate_args": False}
        for stage in ("train", "val", "test"):
            setattr(self, f"{stage}_loss", MeanMetric(nan_strategy=float("nan")))
            setattr(self, f"{stage}_acc", MulticlassAccuracy(average="micro", **per_class))
        self.test_confusion = MulticlassConfusionMatrix(**per_class)  # (10, 10)
        # Loss, logits and labels of training batches whose metrics are not computed yet.
        self._unmeasured: list[tuple[Tensor, Tensor, Tensor]] = []

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        *,
        strict: bool = True,
        weights_only: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Make the model of a checkpoint file.

        Args:
            checkpoint_path: The file.
            map_location: Where to load the weights.
            strict: Whether the names of the weights must be the network's.
            weights_only: Read weights and plain values only, and allow only classes of torch and of
                this package. Give ``net=`` for a network of your own. Use False only for files that
                you trust.
            **kwargs: Arguments of ``__init__``; they replace the checkpoint's.

        Raises:
            InputError: If the file is not a checkpoint, names a class that is not allowed, or is
                for another network.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location, weights_only)
        arguments = dict(kwargs)
        for name, value in checkpoint["hyper_parameters"].items():
            if name not in kwargs:
                arguments[name] = from_settings(value, trusted=not weights_only)
        if "net" not in arguments:
            raise InputError(f"{checkpoint_path} does not name its network: give net=...")
        try:
            model = cls(**arguments)
        except TypeError as error:
            raise InputError(
                f"{checkpoint_path} has settings that {cls.__name__} does not take: {error}"
            ) from error
        load_weights(model, checkpoint, checkpoint_path, strict)
        return model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of float images ``(B, 1, 28, 28)`` in [0, 1]."""
        logits: Tensor = self.net(images)
        return logits

    def _evaluate(self, batch: Batch, stage: Stage) -> Tensor:
        images, labels = batch  # (B, 1, 28, 28), (B,)
        logits = logits_of(self, images)
        getattr(self, f"{stage}_loss").update(F.cross_entropy(logits, labels), weight=len(logits))
        getattr(self, f"{stage}_acc").update(logits, labels)
        return logits

    def _distance_to_teachers(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return the teachers' mean divergence from the network, for the same augmented images.

        KL divergence at a temperature, times its square (Hinton et al. 2015, section 2), and no
        labels (Beyer et al. 2022, section 3).
        """
        with torch.no_grad():
            answers = [logits_of(teacher, images) / self.temperature for teacher in self.teachers]
            taught = torch.stack([answer.softmax(dim=1) for answer in answers]).mean(dim=0)
        guess = (logits / self.temperature).log_softmax(dim=1)
        return F.kl_div(guess, taught, reduction="batchmean") * self.temperature**2

    def _measure(self) -> None:
        losses, logits, labels = zip(*self._unmeasured, strict=True)
        self._unmeasured.clear()
        sizes = torch.tensor([len(batch) for batch in labels], device=self.device)
        self.train_loss.update(torch.stack(losses), weight=sizes)
        self.train_acc.update(torch.cat(logits), torch.cat(labels))

    def recent_metrics(self) -> tuple[float, float] | None:
        """Return the mean loss and the accuracy of the latest updates, for a progress bar.

        These are up to 99; None for fewer than ten, which would say little.
        """
        if len(self._unmeasured) < 10:
            return None
        losses, logits, labels = zip(*self._unmeasured, strict=True)
        right = torch.cat(logits).argmax(dim=1) == torch.cat(labels)
        return torch.stack(losses).mean().item(), right.float().mean().item()

    def _log_epoch(self, stage: Stage) -> None:
        metrics = {f"{stage}/{name}": getattr(self, f"{stage}_{name}") for name in ("loss", "acc")}
        # A progress bar would show the training metrics of the epoch before.
        self.log_dict(metrics, prog_bar=stage != "train")

    def setup(self, stage: str) -> None:
        """Put a run's network, which is in evaluation mode, back into training mode.

        Warn of a network that gives the same images two answers.
        """
        if stage == "fit" and not self.net.training:
            self.train()
        if varies(self.net):
            rank_zero_warn(VARIES)

    def on_fit_start(self) -> None:
        """Move the teachers to the device."""
        for teacher in self.teachers:
            teacher.to(self.device).eval()

    def on_train_epoch_start(self) -> None:
        """Remember the learning rate: the scheduler changes it before the epoch ends."""
        self._epoch_lr = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        self._unmeasured.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's mean cross-entropy, or its divergence from the teachers."""
        images, labels = batch  # (B, 1, 28, 28), (B,)
        logits = logits_of(self, images)
        if self.teachers:
            loss = self._distance_to_teachers(images, logits)
        else:
            scaled = logits
            if self.temperature != 1:  # a division by 1 would cost 1% of a small network's update
                scaled = logits / self.temperature
            loss = F.cross_entropy(scaled, labels, label_smoothing=self.label_smoothing)
        self._unmeasured.append((loss.detach(), logits.detach(), labels))
        if len(self._unmeasured) >= self.MEASURED_AT_ONCE:
            self._measure()
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics, and the learning rate it started with."""
        if self._unmeasured:
            self._measure()
        self._log_epoch("train")
        self.log("lr", self._epoch_lr, sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add the batch to the validation metrics; return its logits ``(B, 10)``, for callbacks."""
        return self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_epoch("val")

    def on_test_epoch_start(self) -> None:
        """Forget the confusion matrix of an earlier test."""
        self.test_confusion.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add the batch to the test metrics; return its logits ``(B, 10)``, for callbacks."""
        logits = self._evaluate(batch, "test")
        self.test_confusion.update(logits, batch[1])
        return logits

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_epoch("test")

    def predict_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Return the probabilities ``(B, 10)`` of a batch whose first element is the images."""
        return logits_of(self, batch[0]).float().softmax(dim=1)

    def configure_optimizers(self) -> Any:
        """Make the optimizer, and the scheduler if there is one.

        Raises:
            InputError: If one refuses its settings, such as a negative learning rate.
        """
        trainer = self.trainer
        try:
            optimizer = self.optimizer(self.parameters())
            schedules = make_schedules(
                self.lr_scheduler,
                optimizer,
                self.lr_scheduler_interval,
                lambda: trainer.estimated_stepping_batches,
            )
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"the optimizer or the learning rate scheduler was refused: {error}"
            ) from error
        is_mixed = isinstance(trainer.precision_plugin, MixedPrecision)
        if is_mixed and trainer.gradient_clip_val and optimizer.defaults.get("fused"):
            hint = "add --model.optimizer Adam --model.optimizer.fused false"
            raise InputError(
                f"an optimizer with fused=True cannot clip gradients in mixed precision: {hint}"
            )
        return [optimizer], schedules

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Turn NumPy's numbers, such as a learning rate, into Python's, which files may hold."""
        for name in checkpoint.keys() - {"state_dict"}:
            checkpoint[name] = plain(checkpoint[name])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Use this run's length for a resumed schedule: max_epochs may have been raised."""
        for state in checkpoint.get("lr_schedulers", []):
            for name in ("total_steps", "_schedule_phases"):
                state.pop(name, None)
