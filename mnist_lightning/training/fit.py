"""``fit``: the whole story of a training, from the model and the data to a run.

The core, 5 of 6. Before: ``classifier.py`` has the training step. After: ``training/run.py`` says
what can be done with a run.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from mnist_lightning.checkpoints import (
    as_list,
    copy_weights,
    load_weights,
    plain,
    read_checkpoint,
)
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.training.callbacks import Freeze
from mnist_lightning.training.denormals import flushed_denormals
from mnist_lightning.training.fast_loop import use_fast_loop
from mnist_lightning.training.folders import claim, keep_or_remove, only_process
from mnist_lightning.training.loggers import HistoryLogger, TensorBoardRunLogger, all_loggers
from mnist_lightning.training.objects import (
    callback_texts,
    cannot_be_loaded,
    config_of_objects,
)
from mnist_lightning.training.progress import EpochLines, with_bar
from mnist_lightning.training.quiet import quiet
from mnist_lightning.training.record import UNKNOWN, RunRecord, learnt_from
from mnist_lightning.training.resume import (
    AtomicCheckpointIO,
    ResumedRun,
    ResumePoint,
    seed_all,
    seed_plainly,
)
from mnist_lightning.training.run import Run, find_checkpoint, load_run
from mnist_lightning.training.runs import LOG_DIR, config_of, kept_checkpoint

LOST_AVERAGE = (
    "StochasticWeightAveraging's average would not be saved: "
    "use EMAWeightAveraging, whose average is tested"
)


@quiet()
def fit(
    model: DigitClassifier | Callable[[], DigitClassifier],
    data: DigitDataModule,
    *,
    seed: int = 42,
    log_dir: str | Path = LOG_DIR,
    name: str | None = None,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    teacher: Any = None,
    freeze: str | Sequence[str] | None = None,
    config: str | None = None,
    callbacks: Sequence[Callback] = (),
    **trainer_kwargs: Any,
) -> Run:
    """Train a model, and keep the checkpoint with the best validation accuracy.

    Afterwards the model has the best checkpoint's weights, or the last ones if nothing was
    validated, and is in evaluation mode.

    With a teacher, the network learns the teacher's probabilities for the augmented images instead
    of the labels.

    Args:
        model: The classifier; or a function that makes it, such as ``lambda:
            DigitClassifier(MLP())``: then the seed sets the first weights too, and the command in
            ``run.json`` repeats the run.
        data: The data module.
        seed: Seed of the data's order, dropout and augmentation. It does not change a classifier
            that is given.
        log_dir: The folder of runs; a relative one is below ``default_root_dir`` if that is given.
        name: The name of the run folder; the next free ``version_N`` by default.
        resume: Continue a run, exactly where its last finished epoch ended: its folder, or ``last``
            for the newest.
        init_from: Start with another run's weights: a run folder or a checkpoint file. Layers with
            another shape keep their new weights.
        teacher: A trained network, a run, its folder or a checkpoint file, or a list of these:
            their probabilities are averaged. They cost memory and a forward pass per update; their
            weights do not change.
        freeze: Layers of the network that keep their weights: names such as ``layers.0``, or
            patterns such as ``layers.1*``.
        config: The content of ``config.yaml``; by default the settings of the objects.
        callbacks: Lightning callbacks. A ModelCheckpoint without a folder replaces the one that
            saves ``best.ckpt``.
        **trainer_kwargs: Other arguments of Lightning's Trainer. Loggers are added to those of the
            run.

    Raises:
        InputError: If an argument is invalid.
    """
    log_dir = Path(trainer_kwargs.pop("default_root_dir", None) or "") / log_dir
    seed, trainer_kwargs = plain(seed), plain(trainer_kwargs)
    is_trial = bool(trainer_kwargs.get("fast_dev_run"))  # which leaves nothing
    is_writer = getattr(rank_zero_only, "rank", 0) == 0  # only the first process writes
    teachers, frozen = as_list(teacher), as_list(freeze)

    # The model, and the settings of all objects.
    is_seeded = config is not None or not isinstance(model, DigitClassifier)
    if not isinstance(model, nn.Module):
        with isolate_rng():
            seed_plainly(seed)
            model = model()
    if not isinstance(model, DigitClassifier):
        got = type(model).__name__
        raise InputError(
            f"model must be a DigitClassifier, or a function that makes one, got {got}"
        )
    if not isinstance(data, DigitDataModule):
        got = data.__name__ if isinstance(data, type) else type(data).__name__
        raise InputError(f"data must be a DigitDataModule, such as MNIST(), got {got}")
    others = {"seed": seed, "init_from": init_from, "teacher": teacher, "freeze": freeze}
    settings = config or config_of_objects(model, data, trainer_kwargs, **others)

    # The weights that it starts with, and what they and the teachers have learnt from.
    resumed = None
    if resume is not None:
        if name or init_from or is_trial:
            given = name or init_from or "fast_dev_run"
            raise InputError(
                f"a run that is resumed takes no other name and no init_from, got {given}"
            )
        resumed = ResumedRun(resume, log_dir)
        resumed.check_settings(model, data, seed, settings)
        load_weights(model, resumed.checkpoint, resumed.file)  # it refuses another network's
    trained_on: list[Mapping[str, Any]] = [data.trained_on]
    if init_from is not None:
        start = find_checkpoint(init_from, "best", log_dir)
        content = read_checkpoint(start)
        fresh = copy_weights(model.net, content, start)
        if fresh and is_writer:
            new = ", ".join(fresh)
            print(f"Not in {start}, or of another shape, so they keep their new values: {new}")
        trained_on += learnt_from(content, config_of(start))
    model.teachers = []
    for each in teachers:
        if not isinstance(each, nn.Module | Run):
            each = load_run(each, log_dir=log_dir)
        trained_on += each.trained_on if isinstance(each, Run) else [UNKNOWN]
        model.teachers.append(each.model.net if isinstance(each, Run) else each)

    # The folder, the Trainer, and the training.
    if config is None and is_writer and (reason := cannot_be_loaded(model.net, data)):
        print(f"This run cannot be loaded by its folder alone: {reason}")
    with TemporaryDirectory() as scratch:
        root = Path(scratch) if is_trial else log_dir
        if resumed:
            folder = resumed.folder
        else:
            folder = claim(root, name) if is_writer else root / (name or "")
        first_weights = "seed" if is_seeded else "given"
        texts = callback_texts(as_list(callbacks))
        record = RunRecord(folder, seed, settings, first_weights, trained_on, texts)
        all_callbacks = [*as_list(callbacks), record]
        if frozen:
            all_callbacks.append(Freeze(frozen))
        trainer = None
        try:
            if trainer_kwargs.get("enable_checkpointing") is not False:
                # First, so that it saves at the end before EMAWeightAveraging replaces the weights.
                point = ResumePoint(folder / "checkpoints" / "last.ckpt", seed)
                all_callbacks = [point, *_with_best(all_callbacks, folder, data)]
                saves = any(isinstance(each, ModelCheckpoint) for each in all_callbacks)
                trainer_kwargs["enable_checkpointing"] = saves
            step = resumed.checkpoint.get("global_step") if resumed else None
            trainer = _trainer(folder, all_callbacks, step, trainer_kwargs)
            if resumed:
                resumed.check_trainer(trainer)
            alone = only_process(folder) if is_writer else nullcontext()
            with alone, isolate_rng(), flushed_denormals():
                seed_all(seed)
                last = resumed.file if resumed else None
                trainer.fit(model, datamodule=data, ckpt_path=last)
        except BaseException as error:
            # Lightning raises SystemExit after Ctrl-C, which would end a notebook's kernel.
            raised = KeyboardInterrupt() if isinstance(error, SystemExit) else error
            if is_writer:
                has_results = bool(resumed or (trainer and trainer.current_epoch))
                keep_or_remove(folder, raised, has_results)
            raise raised  # noqa: B904
        folder = Path(trainer.strategy.broadcast(str(folder)))
        kept = kept_checkpoint(folder)
        if kept:
            load_weights(model, read_checkpoint(kept), kept)
        return Run(folder, kept, model, data, trained_on=record.state["trained_on"])


def _with_best(callbacks: list[Callback], folder: Path, data: DigitDataModule) -> list[Callback]:
    """Return the callbacks with one that saves ``best.ckpt``, if it has something to watch."""
    best = None
    for each in callbacks:
        if best is None and type(each) is ModelCheckpoint and each.dirpath is None:
            best = each
    if best is None:
        best = ModelCheckpoint(
            monitor="val/acc", mode="max", filename="best", enable_version_counter=False
        )
        callbacks = [*callbacks, best]
    best.dirpath = str(folder / "checkpoints")
    if not data.val_fraction and (best.monitor or "").startswith("val/"):
        return [each for each in callbacks if each is not best]
    return callbacks


def _trainer(
    folder: Path, callbacks: list[Callback], step: int | None, given: Mapping[str, Any]
) -> L.Trainer:
    """Return Lightning's Trainer with the loggers of a run; a resumed one begins at ``step``."""
    if any(isinstance(each, StochasticWeightAveraging) for each in callbacks):
        raise InputError(LOST_AVERAGE)
    callbacks = with_bar(callbacks, EpochLines(), given.get("enable_progress_bar"))
    loggers = [TensorBoardRunLogger(folder, step), HistoryLogger(folder, step)]
    usual = {"max_epochs": 10, "enable_model_summary": False}
    own = {
        "default_root_dir": folder,
        "callbacks": callbacks,
        "logger": all_loggers(given.get("logger"), loggers),
        "plugins": [*as_list(given.get("plugins")), AtomicCheckpointIO()],
    }
    trainer = L.Trainer(**{**usual, **given, **own})
    if type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher":
        strategy = given.get("strategy", "auto")
        raise InputError(
            f"the strategy {strategy} loses what its processes write: use ddp, in a script"
        )
    use_fast_loop(trainer)
    return trainer
