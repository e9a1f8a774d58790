"""Lightning's training loop without the work around an update that nobody asked for."""

import os
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loops.fetchers import _DataFetcher, _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from mnist_lightning.adam import DirectAdam

# Hooks inside an update, and hooks of the module around it: where one of them is overridden, Lightning's loop runs.
INNER_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
MODULE_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
)
OPERATIONS_PER_THREAD = 80_000_000  # of an update: two threads lose with 64 images, and win with 256, in an MLP()


def use_direct_loop(trainer: L.Trainer) -> None:
    """Let a trainer train with ``DirectEpochLoop``."""
    trainer.fit_loop.epoch_loop = DirectEpochLoop(trainer, trainer.min_steps, trainer.max_steps)


class DirectEpochLoop(_TrainingEpochLoop):
    """Lightning's training epoch loop, with a direct way through an update.

    For each update Lightning 2.6 enters some fifty contexts of the profiler and offers six hooks to every callback,
    whether or not it has them. On a network this small that takes longer than the training. The direct way makes the
    same calls in the same order, but only those that do something: transfer, callbacks' ``on_train_batch_start``,
    ``training_step``, ``zero_grad``, ``backward``, ``step``, learning rate, callbacks' ``on_train_batch_end``.
    Counters, logging, validation, stopping and checkpoints stay Lightning's.

    Whatever needs more than that takes Lightning's own way: several devices, accumulated or clipped gradients, scaled
    losses, manual optimization, profilers, anomaly detection, and hooks in the middle of an update.
    """

    _is_direct = False

    def __init__(self, trainer: L.Trainer, min_steps: int | None = None, max_steps: int = -1) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self._all_threads = torch.get_num_threads()

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Find out, for each epoch anew, whether the direct way will do, and who listens."""
        super().on_run_start(data_fetcher)
        trainer, module = self.trainer, self.trainer.lightning_module
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if on_cpu:
            # Adam asks at each step whether there is a GPU, and Lightning has torch look for the driver to answer that,
            # which takes 0.2 ms. The other answer is cached.
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
            if "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(useful_threads(module, self._batch_size(), self._all_threads))
        self._is_direct = type(data_fetcher) is _PrefetchDataFetcher and _needs_no_more(trainer)
        if self._is_direct:
            optimizer = trainer.optimizers[0]
            self._optimizer = DirectAdam(optimizer) if DirectAdam.suits(optimizer) else optimizer
        self._on_start = _overriding(trainer, "on_train_batch_start")
        self._on_end = [
            callback for callback in _overriding(trainer, "on_train_batch_end") if not _saves_by_epoch(callback)
        ]
        selector = trainer._data_connector._datahook_selector
        assert selector is not None
        self._transfer_hooks = []
        for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
            owner = selector.get_instance(name)
            # What a loader yields is on the CPU: the default transfer there goes through the batch for nothing.
            if is_overridden(name, owner) or (name == "transfer_batch_to_device" and not on_cpu):
                device = (trainer.strategy.root_device,) if name == "transfer_batch_to_device" else ()
                self._transfer_hooks.append((getattr(owner, name), (*device, 0)))

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on the next batch, and on those after it until something else than an update is due."""
        if self.restarting or not self._is_direct:
            super().advance(data_fetcher)
            return
        self.val_loop.restarting = False
        trainer = self.trainer
        for _ in range(self._updates_on_end()):
            self._advance(next(data_fetcher)[0], data_fetcher.done)
            if trainer.should_stop or trainer.received_sigterm or self.batch_progress.is_last_batch:
                return
            self._batches_that_stepped += 1
        self._advance(next(data_fetcher)[0], data_fetcher.done)

    def _updates_on_end(self) -> int:
        """Return how many updates, from the next, have nothing to do after them: no validation, no end."""
        trainer, done = self.trainer, self.batch_progress.current.ready
        if trainer.val_check_batch in (None, float("inf")) or trainer.lr_scheduler_configs:
            return 0  # validation by the clock, a loader of unknown length, or a scheduler that steps after the update
        since = self.batch_progress.total.ready if trainer.check_val_every_n_epoch is None else done
        until = [trainer.num_training_batches - done, trainer.val_check_batch - since % trainer.val_check_batch]
        if self.max_steps != -1:
            until.append(self.max_steps - self.global_step)
        return max(0, int(min(until)) - 1)

    def _advance(self, batch: Any, is_last_batch: bool) -> None:
        trainer, module, progress = self.trainer, self.trainer.lightning_module, self.batch_progress
        connector, results = trainer._logger_connector, self._results
        batch = trainer.precision_plugin.convert_input(batch)
        for hook, device_and_loader in self._transfer_hooks:
            batch = hook(batch, *device_and_loader)
        batch_idx = progress.current.ready
        progress.is_last_batch = is_last_batch
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None

        if self._on_start:
            _enter_hook(module, "on_train_batch_start")
            for callback in self._on_start:
                callback.on_train_batch_start(trainer, module, batch, batch_idx)
        progress.increment_started()
        outputs = self._update(batch, batch_idx)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if self._on_end:
            _enter_hook(module, "on_train_batch_end")
            for callback in self._on_end:
                callback.on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        _enter_hook(module, None)
        if any(metric.meta.on_step for metric in results.values()):
            connector.on_batch_end()
            progress.increment_completed()
            connector.update_train_step_metrics()
        else:
            results.batch = None
            progress.increment_completed()

    def teardown(self) -> None:
        """Give torch its threads back."""
        super().teardown()
        torch.set_num_threads(self._all_threads)

    def _batch_size(self) -> int | None:
        return getattr(self.trainer.train_dataloader, "batch_size", None)

    def _update(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        trainer, module = self.trainer, self.trainer.lightning_module
        optimizer = self._optimizer
        progress = self.automatic_optimization.optim_progress.optimizer
        progress.step.increment_ready()
        result: ClosureResult

        def closure() -> Tensor | None:
            nonlocal result
            _enter_hook(module, "training_step")
            with trainer.precision_plugin.train_step_context():
                output = module.training_step(batch, batch_idx)
            is_loss = isinstance(output, Tensor)
            result = ClosureResult(output) if is_loss else ClosureResult.from_training_step_output(output)
            progress.zero_grad.increment_ready()
            progress.zero_grad.increment_started()
            optimizer.zero_grad()
            progress.zero_grad.increment_completed()
            if result.closure_loss is not None:
                result.closure_loss.backward()  # type: ignore[no-untyped-call]
            return result.loss

        optimizer.step(closure)
        progress.step.increment_completed()
        return {} if result.loss is None else result.asdict()


def useful_threads(module: nn.Module, batch_size: int | None, available: int) -> int:
    """Return how many threads an update on the CPU can use before they wait for one another longer than they work.

    A dense layer costs two operations a weight and image forward, and four backward. Where there are weights of
    another kind, or the batch size is not known, it is all that are available.
    """
    layers = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    if batch_size is None or not all(isinstance(layer, nn.Linear) for layer in layers):
        return available
    operations = 6 * batch_size * sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
    return min(available, max(1, operations // OPERATIONS_PER_THREAD))


def _needs_no_more(trainer: L.Trainer) -> bool:
    """Return whether the direct way does all that this trainer and its module ask for."""
    module = trainer.lightning_module
    precision = trainer.precision_plugin
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(precision) in (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
        and getattr(precision, "scaler", None) is None
        and isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
        and not trainer._detect_anomaly
        and trainer.accumulate_grad_batches == 1
        and not trainer.gradient_clip_val
        and module.automatic_optimization
        and len(trainer.optimizers) == 1
        and is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        and not any(is_overridden(name, module, L.LightningModule) for name in (*MODULE_HOOKS, *INNER_HOOKS))
        and not any(_overriding(trainer, name) for name in INNER_HOOKS)
    )


def _saves_by_epoch(callback: Callback) -> bool:
    """Return whether a callback is a ModelCheckpoint that has nothing to do after an update but to find that out."""
    return (
        type(callback) is ModelCheckpoint
        and callback._every_n_train_steps < 1
        and callback._train_time_interval is None
    )


def _overriding(trainer: L.Trainer, hook: str) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if is_overridden(hook, callback, Callback)]


def _enter_hook(module: L.LightningModule, name: str | None) -> None:
    """Tell ``self.log`` where it is called from, past ``nn.Module.__setattr__``, which takes its time."""
    vars(module)["_current_fx_name"] = name
