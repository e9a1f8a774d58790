"""Lightning's training epoch loop without the calls that have no effect."""

import os
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import optimizer as optimizer_module

try:  # another version of Lightning may lack these
    from lightning.pytorch.loops.optimization.automatic import ClosureResult
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
    from lightning.pytorch.utilities.model_helpers import is_overridden
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
except ImportError:
    _TrainingEpochLoop = object  # type: ignore[assignment, misc]

TESTED_LIGHTNING, TESTED_TORCH = ("2.6.",), ("2.14.", "2.15.")
# Lightning's own loop runs if the module overrides one of these, or a callback one of INNER_HOOKS.
INNER_HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
STEP_HOOKS = ("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping")
MODULE_HOOKS = (*INNER_HOOKS, *STEP_HOOKS, "on_train_batch_start", "on_train_batch_end")
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# Of a module; self.log reads it. vars() avoids the slow nn.Module.__setattr__.
CURRENT_HOOK = "_current_fx_name"
ADAM_SETTINGS = ("lr", "weight_decay", "eps", "amsgrad", "maximize")
# In an MLP's update. With fewer, a second thread gains less than it loses beside a busy process.
OPERATIONS_PER_THREAD = 100_000_000


def use_fast_loop(trainer: L.Trainer) -> None:
    """Make a trainer train with ``FastEpochLoop``; of untested versions, warn and change nothing.

    Args:
        trainer: A Trainer that has not started to fit.
    """
    is_tested = L.__version__.startswith(TESTED_LIGHTNING) and torch.__version__.startswith(
        TESTED_TORCH
    )
    if not is_tested or FastEpochLoop.__base__ is object:
        rank_zero_warn(
            f"The fast training loop is not tested with Lightning {L.__version__} and torch "
            f"{torch.__version__}, so Lightning's own loop is used. "
            "The results are the same; training is only slower."
        )
        return
    trainer.fit_loop.epoch_loop = FastEpochLoop(trainer, trainer.min_steps, trainer.max_steps)


class FastEpochLoop(_TrainingEpochLoop):
    """Lightning's training epoch loop with a shorter way through an update.

    In each update, Lightning 2.6 enters about fifty profiler contexts and calls six hooks on every
    callback, even when they are empty. For a small network this takes longer than the training. The
    fast way makes only the calls that have an effect, in the same order: transfer, callbacks'
    ``on_train_batch_start``, ``training_step``, ``zero_grad``, ``backward``, ``step``, learning
    rate, callbacks' ``on_train_batch_end``. Counters, logging, validation, stopping and checkpoints
    stay Lightning's.

    Lightning's own way runs for everything else: several devices, accumulated or clipped gradients,
    scaled losses, manual optimization, profilers, and hooks of a transfer or inside an update.
    """

    _is_fast = False

    def run(self, data_fetcher: Any) -> None:
        """Train for an epoch, on as many threads as are useful."""
        trainer, threads = self.trainer, torch.get_num_threads()
        if trainer.strategy.root_device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            batch_size = getattr(trainer.train_dataloader, "batch_size", None)
            torch.set_num_threads(useful_threads(trainer.lightning_module, batch_size, threads))
        try:
            super().run(data_fetcher)
        finally:  # not in teardown, which Lightning does not call if validation fails
            torch.set_num_threads(threads)

    def on_run_start(self, data_fetcher: Any) -> None:
        """Choose the fast way or Lightning's for this epoch, and find the hooks with an effect."""
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        self._is_fast = _is_covered(trainer)
        if not self._is_fast:
            return
        self._precision, self._device = trainer.precision_plugin, trainer.strategy.root_device
        optimizer = trainer.optimizers[0]
        self._optimizer = FusedAdam(optimizer) if FusedAdam.suits(optimizer) else optimizer
        self._on_start = _overridden(trainer, "on_train_batch_start")
        self._on_end = _overridden(trainer, "on_train_batch_end")

    def advance(self, data_fetcher: Any) -> None:
        """Train on the next batches, until Lightning has something to do besides updates.

        Args:
            data_fetcher: Lightning's iterator over the batches.

        Raises:
            StopIteration: If the epoch has no more batches.
        """
        if self.restarting or not self._is_fast:
            super().advance(data_fetcher)
            return
        self.val_loop.restarting = False
        trainer, progress, last = self.trainer, self.batch_progress, self._last_batch_before_event()
        while True:
            batch = next(data_fetcher)[0]
            progress.is_last_batch = data_fetcher.done
            self._advance(batch)
            is_last = progress.is_last_batch or progress.current.ready >= last
            if is_last or trainer.should_stop or trainer.received_sigterm:
                return
            self._batches_that_stepped += 1

    def _last_batch_before_event(self) -> Any:
        """Return after which batch of this epoch Lightning validates, stops or steps a plateau."""
        trainer, done = self.trainer, self.batch_progress.current.ready
        interval = trainer.val_check_batch
        steps_on_metric = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        if steps_on_metric or interval is None:  # it validates by the clock
            return 0
        since = self.batch_progress.total.ready if trainer.check_val_every_n_epoch is None else done
        events = [trainer.num_training_batches, done + interval - since % interval]
        if self.max_steps != -1:
            events.append(done + self.max_steps - self.global_step)
        return min(events)

    def _advance(self, batch: Any) -> None:
        trainer, module, progress = self.trainer, self.trainer.lightning_module, self.batch_progress
        connector, results = trainer._logger_connector, self._results
        batch = self._precision.convert_input(batch)
        if not _is_on(self._device, batch):
            batch = trainer.strategy.batch_to_device(batch)
        batch_idx = progress.current.ready
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None

        outputs = None
        if batch is not None:
            vars(module)[CURRENT_HOOK] = "on_train_batch_start"
            for hook in self._on_start:
                hook(trainer, module, batch, batch_idx)
            progress.increment_started()
            outputs = self._update(module, batch, batch_idx)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if progress.is_last_batch or progress.current.ready == trainer.num_training_batches:
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        vars(module)[CURRENT_HOOK] = "on_train_batch_end"
        for hook in self._on_end:
            hook(trainer, module, outputs, batch, batch_idx)
        vars(module)[CURRENT_HOOK] = None
        if any(metric.meta.on_step for metric in results.values()):
            connector.on_batch_end()
            progress.increment_completed()
            connector.update_train_step_metrics()
        else:
            results.batch = results.batch_size = None
            progress.increment_completed()

    def _update(self, module: L.LightningModule, batch: Any, batch_idx: int) -> dict[str, Any]:
        optimizer = self._optimizer
        progress = self.automatic_optimization.optim_progress.optimizer
        result: ClosureResult

        def closure() -> Tensor | None:
            nonlocal result
            vars(module)[CURRENT_HOOK] = "training_step"
            with self._precision.train_step_context():
                output: Any = module.training_step(batch, batch_idx)
            is_loss = isinstance(output, Tensor)
            result = (
                ClosureResult(output)
                if is_loss
                else ClosureResult.from_training_step_output(output)
            )
            optimizer.zero_grad()
            progress.zero_grad.increment_by(1)
            if result.closure_loss is not None:
                result.closure_loss.backward()  # type: ignore[no-untyped-call]
            else:
                rank_zero_warn(
                    "`training_step` returned `None`. "
                    "If this was on purpose, ignore this warning..."
                )
            return result.loss

        progress.step.increment_ready()
        # Some optimizers call the closure under no_grad.
        optimizer.step(
            closure=closure if isinstance(optimizer, FusedAdam) else torch.enable_grad()(closure)
        )
        progress.step.increment_completed()
        return {} if result.loss is None else result.asdict()


class FusedAdam:
    """Makes the steps of torch's fused Adam or AdamW on the CPU, to the same bits.

    It leaves out what ``Optimizer.step`` and ``zero_grad`` do around the one operation, such as
    profiling and hooks: a third of an MLP's update. State and settings stay the optimizer's, which
    makes the first step itself.

    Args:
        optimizer: One that ``suits``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @staticmethod
    def suits(optimizer: torch.optim.Optimizer) -> bool:
        """Return whether it is torch's fused Adam of float32 weights on the CPU, without hooks."""
        if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
            return False
        group, *others = optimizer.param_groups
        numbers = (group["lr"], *group["betas"])
        hooks = (
            *optimizer._optimizer_step_pre_hooks,
            *optimizer._optimizer_step_post_hooks,
            *optimizer_module._global_optimizer_pre_hooks,
            *optimizer_module._global_optimizer_post_hooks,
        )
        return (
            bool(group["fused"])
            and not (others or hooks or group["amsgrad"])
            and not any(isinstance(number, Tensor) for number in numbers)
            and all(weight.is_cpu and weight.dtype == torch.float32 for weight in group["params"])
        )

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for weight in self.optimizer.param_groups[0]["params"]:
            weight.grad = None

    def step(self, closure: Callable[[], Any]) -> None:
        """Compute the gradients and update the weights.

        Args:
            closure: It computes the gradients.
        """
        closure()
        group = self.optimizer.param_groups[0]
        weights = [weight for weight in group["params"] if weight.grad is not None]
        states = [self.optimizer.state[weight] for weight in weights]
        if not (weights and all(states)):  # a skipped batch, or the first step
            self.optimizer.step()
            return
        averages, squares, steps = (
            [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        gradients = [weight.grad for weight in weights]
        (beta1, beta2), settings = group["betas"], {name: group[name] for name in ADAM_SETTINGS}
        update = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        with torch.no_grad():
            for step in steps:
                step.add_(1)
            update(
                weights,
                gradients,
                averages,
                squares,
                [],
                steps,
                beta1=beta1,
                beta2=beta2,
                **settings,
            )


def useful_threads(module: nn.Module, batch_size: int | None, available: int) -> int:
    """Return how many threads make an update on the CPU faster.

    A dense layer costs two operations per weight and image forward, and four backward.

    Args:
        module: The network; with other weights than those of dense layers, all threads are useful.
        batch_size: Images in an update; if it is not known, all threads are useful.
        available: The number of threads that torch has.
    """
    layers = [
        layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))
    ]
    if batch_size is None or not all(isinstance(layer, nn.Linear) for layer in layers):
        return available
    operations = (
        6
        * batch_size
        * sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
    )
    return min(available, max(1, operations // OPERATIONS_PER_THREAD))


def _is_covered(trainer: L.Trainer) -> bool:
    """Return whether the fast way does all that this trainer and its module ask for."""
    module, precision = trainer.lightning_module, trainer.precision_plugin
    owners = (module, trainer.datamodule)  # type: ignore[attr-defined]
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(precision) in (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
        and getattr(precision, "scaler", None) is None
        and isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
        and trainer.accumulate_grad_batches == 1
        and not trainer.gradient_clip_val
        and module.automatic_optimization
        and len(trainer.optimizers) == 1
        and is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        and not is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True)
        and not any(is_overridden(name, module, L.LightningModule) for name in MODULE_HOOKS)
        and not any(is_overridden(name, each) for name in TRANSFER_HOOKS for each in owners)
        and not any(_overridden(trainer, name) for name in INNER_HOOKS)
    )


def _overridden(trainer: L.Trainer, hook: str) -> list[Callable[..., None]]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [
        getattr(callback, hook) for callback in callbacks if is_overridden(hook, callback, Callback)
    ]


def _is_on(device: torch.device, batch: Any) -> bool:
    return isinstance(batch, (list, tuple)) and {
        getattr(item, "device", None) for item in batch
    } == {device}
