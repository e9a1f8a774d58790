"""The verbs that need torch: each parses, calls the library, and prints."""

import logging
import os
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.classifier import read_checkpoint
from mnist_lightning.data.augmentation import Augmentation, augmented
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.files import write_atomic
from mnist_lightning.parsing import FitCLI, look_ahead, parse
from mnist_lightning.report import text
from mnist_lightning.signals import listen
from mnist_lightning.training.fit import fit
from mnist_lightning.training.loggers import show_pictures
from mnist_lightning.training.run import Run, as_list, config_of, find_checkpoint, find_last, load_run
from mnist_lightning.training.runs import LOG_DIR
from mnist_lightning.usage import PROGRAM

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


class CommandLine(Callback):
    """Write the parsed settings to ``config.yaml``, and let signals stop the process.

    Lightning 2.6 only notes SIGTERM and exits with 0, and on a SLURM cluster it requeues the job itself.
    """

    def __init__(self, config: str = "") -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the settings, now that they work, and install our signal handlers again: Lightning replaced them."""
        if trainer.is_global_zero and self.config:
            write_atomic(Path(trainer.default_root_dir) / "config.yaml", self.config)
        listen()

    on_validation_start = on_test_start = on_predict_start = listen  # type: ignore[assignment]


def trainer_kwargs(settings: Namespace, *callbacks: Callback) -> dict[str, Any]:
    """Return the Trainer's arguments that were given, and the callbacks."""
    given = {name: value for name, value in vars(settings).items() if value is not None}
    return given | {"callbacks": [*callbacks, *as_list(given.get("callbacks"))]}


def load(verb: str, args: Sequence[str], **options: dict[str, Any]) -> tuple[Run, dict[str, Any], Namespace]:
    """Return the run that a verb is for, the Trainer's arguments, and the verb's options."""
    known = look_ahead(args)
    paths = [] if any(word.endswith("help") for word in args) else known.ckpt_path or [None]
    files = [find_checkpoint(path, "best", known.log_dir) for path in paths]
    parsed = parse(verb, args, (config_of(files[0]) if files else None) or {}, **options)
    run = load_run(files if len(files) > 1 else files[0], data=parsed.data, log_dir=known.log_dir, tta=parsed.tta)
    say(f"Checkpoint: {', '.join(map(str, files))}" + ("" if known.ckpt_path else " (the best of the newest run)"))
    return run, trainer_kwargs(parsed.trainer, CommandLine()), parsed


def _fit(args: Sequence[str]) -> None:
    known = look_ahead(args)
    last = step = None
    if known.ckpt_path is not None:
        last = find_last(known.ckpt_path[0], known.log_dir)
        step = read_checkpoint(last).get("global_step")
        args = ["--config", str(last.parent.parent / "config.yaml"), *args]
    cli = FitCLI(args)
    made = cli.config_init
    trainer = trainer_kwargs(made.trainer, CommandLine(cli.text))
    if trainer.get("enable_checkpointing") is not False and not trainer.get("fast_dev_run"):
        trainer["callbacks"].append(made.checkpoint)
    seed = torch.initial_seed() % 2**32 if isinstance(made.seed_everything, bool) else made.seed_everything
    names = {"name": made.name, "resume": last, "init_from": made.init_from, "teacher": made.teacher}
    run = fit(cli.model, cli.datamodule, seed=seed, **names, **trainer)
    record = run.record
    if not record:
        return say("fast_dev_run: nothing was written")
    say(f"\n{text.fit_table(record, str(run.folder))}\n")
    if step == record["global_step"]:
        say(f"Nothing was left to train; to train on, raise --epochs above {record['epochs']}.")
    if run.checkpoint and run.checkpoint.stem == record["weights"]:
        where = "" if run.folder.parent == Path(LOG_DIR) else f" --ckpt_path {run.folder}"
        say(f"Next: {PROGRAM} {'test' if run.data.has_test_labels else 'predict'}{where}")


def _validate(args: Sequence[str]) -> None:
    run, trainer, _ = load("validate", args)
    metrics = run.validate(**trainer)
    say(f"\nvalidation accuracy {metrics['accuracy']:.2%}   loss {metrics['loss']:.4f}")


def _test(args: Sequence[str]) -> None:
    run, trainer, parsed = load("test", args, robustness={"type": bool, "default": False})
    metrics = run.test(robustness=parsed.robustness, **trainer)
    report = run.folder / "report" / "index.html"
    say(f"\n{text.test_table(metrics)}\n\nReport: {report}" if metrics else "fast_dev_run: nothing was written")


def _predict(args: Sequence[str]) -> int:
    args = ["--images", *args] if args and args[0][:1] != "-" else args
    run, trainer, parsed = load("predict", args, images={"type": str, "nargs": "+"})
    if parsed.images is None:
        run.predict(**trainer)
        say(f"Written: {', '.join(map(str, run.written))}" if run.written else "fast_dev_run: nothing was written")
        return 0
    from mnist_lightning.pictures.read import picture_files  # here, since OpenCV takes a while to import
    from mnist_lightning.pictures.recognize import CARDS, COPIES, write_digits

    uses_gpu = torch.cuda.is_available() and trainer.get("accelerator") != "cpu"
    net = run.model.net.to("cuda" if uses_gpu else "cpu")
    done = write_digits(run.folder, picture_files(parsed.images), net)
    shown = {file.stem: file for file in sorted((run.folder / COPIES).glob("*.jpg"))[:10]}
    if shown:
        pngs = {name: file.read_bytes() for name, file in {"cards": run.folder / CARDS, **shown}.items()}
        show_pictures(run.folder, run.record.get("global_step", 0), pngs)
    doubtful = f" ({done.doubtful:,} doubtful)" if done.doubtful else ""
    say(f"\nDigits: {done.digits:,}{doubtful}   pictures: {done.pictures:,}   without a digit: {done.failures:,}")
    say(f"Written: {', '.join(map(str, done.written))}")
    return 1 if done.failures else 0


def _describe(args: Sequence[str]) -> None:
    parsed = parse("describe", args, output={"type": str}, augmentation={"type": bool, "default": False})
    data: DigitDataModule = parsed.data
    data.prepare_data()
    data.setup()
    splits = {"training": data.train_set, "validation": data.val_set, "test": data.test_set}
    from mnist_lightning.report.describe import write_description  # here, since matplotlib imports slowly

    folder = Path(parsed.output or f"{LOG_DIR}/describe_{type(data).__name__}")
    shown = {name: split.arrays() for name, split in splits.items() if split is not None and len(split)}
    augment = partial(augmented, data.augmentation or Augmentation()) if parsed.augmentation else None
    described = write_description(folder, shown, augment)
    say(f"{type(data).__name__}\n\n{text.description_table(described)}\n\nWritten: {folder}/")


def _doctor(args: Sequence[str]) -> int:
    from mnist_lightning.doctor import doctor  # here, since no other verb needs it

    options: dict[str, dict[str, Any]] = {"default_root_dir": {"type": str}, "num_nodes": {"type": int}}
    options |= {"accelerator": {"type": str, "default": "auto"}, "devices": {"type": int | str, "default": "auto"}}
    parsed = parse("doctor", args, **options)
    log_dir = Path(parsed.default_root_dir or "") / LOG_DIR
    return doctor(parsed.data, log_dir, parsed.accelerator, parsed.devices, parsed.num_nodes)


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {"fit": _fit, "validate": _validate, "test": _test}
COMMANDS |= {"predict": _predict, "describe": _describe, "doctor": _doctor}


@rank_zero_only
def say(line: str) -> None:
    """Print a line, in the first process only."""
    print(line, flush=True)


def quieten() -> None:
    """Hide messages that the user cannot act on."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what version 5 removes
    warnings.filterwarnings("ignore", message=f".*({NO_WARNING})")
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{name}").addFilter(lambda record: not NOT_NEWS.search(record.getMessage()))


def run(verb: str, args: Sequence[str]) -> int:
    """Run a verb, and return the exit code."""
    quieten()
    try:
        return COMMANDS[verb](args) or 0
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
