"""Lightning's training loop without the work around an update that nobody asked for."""

import os
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.fetchers import _DataFetcher, _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

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


OPERATIONS_PER_THREAD = 100_000_000  # of an update, measured


def use_direct_loop(trainer: L.Trainer) -> None:
    """Let a trainer train with ``DirectEpochLoop``."""
    trainer.fit_loop.epoch_loop = DirectEpochLoop(trainer, trainer.min_steps, trainer.max_steps)


class DirectEpochLoop(_TrainingEpochLoop):
    """Lightning's training epoch loop, with a direct way through an update.

    For each update Lightning 2.6 enters some fifty contexts of the profiler, offers eight hooks to every callback
    whether or not it has them, and hands the loss through five closures. On a network this small that takes longer
    than the training. The direct way makes the same calls in the same order, but only those that do something:
    transfer, callbacks' ``on_train_batch_start``, ``training_step``, ``zero_grad``, ``backward``, ``step``, learning
    rate, callbacks' ``on_train_batch_end``. Counters, logging, validation, stopping and checkpoints stay Lightning's.

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
        trainer = self.trainer
        if trainer.strategy.root_device.type == "cpu":
            # Adam asks at each step whether there is a GPU, and Lightning has torch look for the driver to answer that,
            # which takes 0.2 ms. The other answer is cached.
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
            if "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(useful_threads(trainer.lightning_module, self._batch_size(), self._all_threads))
        self._is_direct = type(data_fetcher) is _PrefetchDataFetcher and _needs_no_more(trainer)
        self._on_start = _overriding(trainer, "on_train_batch_start")
        self._on_end = _overriding(trainer, "on_train_batch_end")
        selector = trainer._data_connector._datahook_selector
        assert selector is not None
        self._transfer_hooks = [
            getattr(selector.get_instance(name), name)
            for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        ]

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on the next batch."""
        if self.restarting or not self._is_direct:
            super().advance(data_fetcher)
            return
        trainer, module, progress = self.trainer, self.trainer.lightning_module, self.batch_progress
        connector = trainer._logger_connector
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        batch_idx = progress.current.ready
        progress.is_last_batch = data_fetcher.done
        batch = self._transfer(batch)
        progress.increment_ready()
        connector.on_batch_start(batch)

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
        _enter_hook(module, "on_train_batch_end")
        for callback in self._on_end:
            callback.on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        _enter_hook(module, None)
        connector.on_batch_end()
        progress.increment_completed()
        connector.update_train_step_metrics()

    def teardown(self) -> None:
        """Give torch its threads back."""
        super().teardown()
        torch.set_num_threads(self._all_threads)

    def _batch_size(self) -> int | None:
        return getattr(self.trainer.train_dataloader, "batch_size", None)

    def _transfer(self, batch: Any) -> Any:
        before, transfer, after = self._transfer_hooks
        batch = before(self.trainer.precision_plugin.convert_input(batch), 0)
        return after(transfer(batch, self.trainer.strategy.root_device, 0), 0)

    def _update(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        trainer, module = self.trainer, self.trainer.lightning_module
        optimizer = trainer.optimizers[0]
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


def _overriding(trainer: L.Trainer, hook: str) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if is_overridden(hook, callback, Callback)]


def _enter_hook(module: L.LightningModule, name: str | None) -> None:
    """Tell ``self.log`` where it is called from, without the 3 µs of ``nn.Module.__setattr__``."""
    vars(module)["_current_fx_name"] = name
