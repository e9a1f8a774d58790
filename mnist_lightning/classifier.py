"""The training recipe as a LightningModule: loss, metrics, optimizer and schedule."""

import inspect
import json
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from mnist_lightning.errors import InputError, needs
from mnist_lightning.models.classify import VARIES, compiled_in_place, logits_of, varies
from mnist_lightning.schedules import Plateau
from mnist_lightning.settings import from_settings, is_plain, plain, to_settings

Stage = Literal["train", "val", "test"]
Batch = tuple[Tensor, Tensor]


class DigitClassifier(L.LightningModule):
    """Classify digits with a network, cross-entropy and accuracy.

    It logs ``<stage>/loss`` and ``<stage>/acc`` once per epoch, and the learning rate as ``lr``. After a test epoch
    ``test_counts`` is the confusion matrix ``(10, 10)``: rows true, columns predicted.

    Args:
        net: Network from float images ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``.
        optimizer: Function from the parameters to the optimizer. The default is Adam with Keras's settings.
        lr_scheduler: Function from the optimizer to the learning rate scheduler, such as OneCycle, Cosine or Plateau;
            none by default. One that takes ``total_steps`` gets the run's number of updates, and steps after each.
        lr_scheduler_interval: When any other scheduler steps: after each epoch or after each update.
        label_smoothing: Share of each training label that is spread over all digits (Szegedy et al. 2016), in [0, 1).
        temperature: What logits are divided by in training, a teacher's too (Hinton et al. 2015). Above 1 it makes the
            trained network more certain, which undoes what label smoothing does to its confidence.

    Raises:
        InputError: If a number is out of its range.
    """

    train_loss: MeanMetric
    train_acc: MulticlassAccuracy
    PENDING = 100  # updates whose training metrics are computed together: one by one would slow down training

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
        with warnings.catch_warnings(action="ignore"):  # about the network, which is replaced by its settings below
            self.save_hyperparameters()
        # Only plain values: a checkpoint that holds objects could run code, and weights-only loading refuses it.
        given = {
            key: to_settings(value) if isinstance(value, nn.Module) else plain(value)
            for key, value in self.hparams.items()
        }
        self.hparams.clear()
        self.hparams.update(
            {key: value for key, value in given.items() if value is not None and key[0] != "_" and is_plain(value)}
        )
        self.net = net
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.label_smoothing, self.temperature = label_smoothing, temperature
        self.teachers: list[nn.Module] = []  # in a list: they are neither trained nor saved
        self.lr: float | None = None  # Lightning's LearningRateFinder needs it; it also sets the optimizer's

        # validate_args would look at every batch for labels outside 0-9; the data modules checked them once.
        per_class: dict[str, Any] = {"num_classes": 10, "validate_args": False}
        for stage in ("train", "val", "test"):
            setattr(self, f"{stage}_loss", MeanMetric(nan_strategy=float("nan")))
            setattr(self, f"{stage}_acc", MulticlassAccuracy(average="micro", **per_class))
        self.test_confusion = MulticlassConfusionMatrix(**per_class)  # rows true, columns predicted
        self.test_counts: Tensor | None = None
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []  # loss, logits, labels of training batches

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
            weights_only: Read weights and plain values only, and allow only classes of torch and of this package. Give
                ``net=`` for a network of your own. Use False only for files that you trust.
            **kwargs: Arguments of ``__init__``; they replace the checkpoint's.

        Raises:
            InputError: If the file is not a checkpoint, names a class that is not allowed, or is for another network.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location, weights_only)
        given = {name: value for name, value in checkpoint["hyper_parameters"].items() if name not in kwargs}
        arguments = {name: from_settings(value, trusted=not weights_only) for name, value in given.items()} | kwargs
        if "net" not in arguments:
            raise InputError(f"{checkpoint_path} does not name its network: give net=...")
        try:
            model = cls(**arguments)
        except TypeError as error:
            raise InputError(f"{checkpoint_path} has settings that {cls.__name__} does not take: {error}") from error
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

        KL divergence at a temperature, times its square (Hinton et al. 2015, section 2), and no labels (Beyer et al.
        2022, section 3).
        """
        with torch.no_grad():
            answers = [logits_of(teacher, images) / self.temperature for teacher in self.teachers]
            taught = torch.stack([answer.softmax(dim=1) for answer in answers]).mean(dim=0)
        guess = (logits / self.temperature).log_softmax(dim=1)
        return F.kl_div(guess, taught, reduction="batchmean") * self.temperature**2

    def _measure_pending(self) -> None:
        losses, logits, labels = zip(*self._pending, strict=True)
        self._pending.clear()
        sizes = torch.tensor([len(batch) for batch in labels], device=self.device)
        self.train_loss.update(torch.stack(losses), weight=sizes)
        self.train_acc.update(torch.cat(logits), torch.cat(labels))

    def _log_epoch(self, stage: Stage) -> None:
        metrics = {f"{stage}/{name}": getattr(self, f"{stage}_{name}") for name in ("loss", "acc")}
        # A progress bar would show the training metrics of the epoch before.
        self.log_dict(metrics, prog_bar=stage != "train")

    def setup(self, stage: str) -> None:
        """Train a network that is in evaluation mode, as that of a run is; warn of one whose answers vary."""
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
        self._pending.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's mean cross-entropy, or its divergence from the teachers if there are any."""
        images, labels = batch  # (B, 1, 28, 28), (B,)
        logits = logits_of(self, images)
        if self.teachers:
            loss = self._distance_to_teachers(images, logits)
        else:
            loss = F.cross_entropy(logits / self.temperature, labels, label_smoothing=self.label_smoothing)
        self._pending.append((loss.detach(), logits.detach(), labels))
        if len(self._pending) >= self.PENDING:
            self._measure_pending()
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics, and the learning rate it started with."""
        if self._pending:
            self._measure_pending()
        self._log_epoch("train")
        self.log("lr", self._epoch_lr, sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add the batch to the validation metrics; return its logits ``(B, 10)``, for callbacks."""
        return self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_epoch("val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add the batch to the test metrics; return its logits ``(B, 10)``, for callbacks."""
        logits = self._evaluate(batch, "test")
        self.test_confusion.update(logits, batch[1])
        return logits

    def on_test_epoch_end(self) -> None:
        """Log the test metrics and keep the confusion matrix in ``test_counts``."""
        self._log_epoch("test")
        self.test_counts = self.test_confusion.compute()
        self.test_confusion.reset()

    def predict_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Return the probabilities ``(B, 10)`` of a batch whose first element is the images."""
        return logits_of(self, batch[0]).float().softmax(dim=1)

    def configure_optimizers(self) -> Any:
        """Make the optimizer, and the scheduler if there is one.

        Raises:
            InputError: If one refuses its settings, such as a negative learning rate.
        """
        try:
            optimizer = self.optimizer(self.parameters())
            given = getattr(self.lr_scheduler, "keywords", {})  # the command line makes a partial, with every argument
            make = self.lr_scheduler
            asks = make is not None and "total_steps" in {*given, *inspect.signature(make).parameters}
            length = {}
            updates = self.trainer.estimated_stepping_batches if asks else math.inf  # infinite with max_epochs -1
            if math.isfinite(updates) and not (given.get("total_steps") or given.get("epochs")):
                length = {"total_steps": int(updates)}
            scheduler = None if make is None else make(optimizer, **length)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"the optimizer or the learning rate scheduler was refused: {error}") from error
        clips = self.trainer.gradient_clip_val and isinstance(self.trainer.precision_plugin, MixedPrecision)
        if clips and optimizer.defaults.get("fused"):
            hint = "add --model.optimizer Adam --model.optimizer.fused false"
            raise InputError(f"an optimizer with fused=True cannot clip gradients in mixed precision: {hint}")
        if scheduler is None:
            return optimizer
        by_step = asks and not isinstance(scheduler, Plateau)
        schedule = {"scheduler": scheduler, "interval": "step" if by_step else self.lr_scheduler_interval}
        schedules = [schedule | {"monitor": getattr(scheduler, "monitor", None)}]
        if isinstance(scheduler, Plateau) and scheduler.warmup_steps:
            rise = LinearLR(optimizer, start_factor=1 / 25, total_iters=scheduler.warmup_steps)
            schedules.append({"scheduler": rise, "interval": "step"})
        return [optimizer], schedules

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Turn NumPy's numbers, such as a learning rate, into Python's: a checkpoint is read as plain values only."""
        for name in checkpoint.keys() - {"state_dict"}:
            checkpoint[name] = plain(checkpoint[name])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Use this run's length for a resumed schedule: max_epochs may have been raised."""
        for state in checkpoint.get("lr_schedulers", []):
            for name in ("total_steps", "_schedule_phases"):
                state.pop(name, None)


def read_checkpoint(path: str | Path, map_location: Any = "cpu", weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint or safetensors file as weights and plain values; code in it does not run.

    Raises:
        InputError: If the file is missing, damaged, or not a checkpoint of this package.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about how the file was pickled
            is_safe = Path(path).suffix == ".safetensors"
            read = _read_safetensors if is_safe else partial(torch.load, weights_only=weights_only)
            checkpoint = read(path, map_location)
        state, settings = checkpoint["state_dict"], checkpoint.setdefault("hyper_parameters", {})
        are_weights = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
        if not are_weights or not isinstance(settings, dict):
            raise TypeError("not a checkpoint")
    except InputError:  # safetensors is not installed
        raise
    except Exception as error:  # damaged bytes may raise anything
        reason = getattr(error, "strerror", None) or "it is damaged, or holds more than weights and plain values"
        raise InputError(f"cannot read the checkpoint {path}: {reason}; give a checkpoint that fit wrote") from error
    content: dict[str, Any] = checkpoint
    return content


def _read_safetensors(path: str | Path, map_location: Any) -> dict[str, Any]:
    with needs("export"):
        from safetensors import safe_open
    with safe_open(path, "pt", str(map_location)) as file:
        state = {f"net.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is not a dict
        settings = json.loads((file.metadata() or {}).get("network", "null"))
    return {"state_dict": state, "hyper_parameters": {} if settings is None else {"net": settings}}


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: str | Path, strict: bool = True) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        InputError: If they are for another network; the first difference is named.
    """
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=strict)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path} is for another network: {reason:.200}") from error
