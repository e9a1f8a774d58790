"""The command line: each verb parses, calls the library, and prints."""

import argparse
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.classifier import read_checkpoint
from mnist_lightning.data.augmentation import Augmentation, augmented
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError, condense, printable
from mnist_lightning.files import write_atomic
from mnist_lightning.parsing import PROGRAM, VERBS, FitCLI, look_ahead, parse
from mnist_lightning.report import text
from mnist_lightning.training.fit import fit
from mnist_lightning.training.run import LOG_DIR, Run, as_list, config_of, find_checkpoint, find_last, load_run

DEBUG_SWITCH = "MNIST_LIGHTNING_DEBUG"
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
IMAGES = "Pictures of digits to read instead of the test images: PNG, JPEG, BMP, GIF, TIFF, WebP, or folders of them."
ROBUSTNESS = "Measure moved, rotated, noisy, blurred, thinner and thicker test images too; as slow as 54 tests."
AUGMENTATION = "Draw augmented digits too: by --data.augmentation, or by the default settings of Augmentation."
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

    stopped_by: int = signal.SIGINT

    def __init__(self, config: str = "") -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the settings, now that they work, and install our signal handlers again: Lightning replaced them."""
        if trainer.is_global_zero and self.config:
            write_atomic(Path(trainer.default_root_dir) / "config.yaml", self.config)
        self.listen()

    @staticmethod
    def listen(*_: Any) -> None:
        """Raise KeyboardInterrupt on SIGINT, SIGTERM and SIGUSR1, and ignore those that follow."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                signal.signal(number, CommandLine.stop)

    @staticmethod
    def stop(number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        CommandLine.stopped_by = number
        for other in STOPPING:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    on_validation_start = on_test_start = on_predict_start = listen  # type: ignore[assignment]


def trainer_kwargs(settings: Namespace, *callbacks: Callback) -> dict[str, Any]:
    """Return the Trainer's arguments that were given, and the callbacks."""
    given = {name: value for name, value in vars(settings).items() if value is not None}
    return given | {"callbacks": [*callbacks, *as_list(given.get("callbacks"))]}


def load(verb: str, args: Sequence[str], **options: dict[str, Any]) -> tuple[Run, dict[str, Any], Namespace]:
    """Return the run that a verb is for, the Trainer's arguments, and the verb's options."""
    known, _ = look_ahead(args)
    paths = [] if {"-h", "--help"} & set(args) else known.ckpt_path or [None]
    files = [find_checkpoint(path, "best", known.log_dir) for path in paths]
    parsed = parse(verb, args, (config_of(files[0]) if files else None) or {}, **options)
    chosen = files if len(files) > 1 else files[0]
    run = load_run(chosen, data=parsed.data, log_dir=known.log_dir, tta=parsed.tta)
    say(f"Checkpoint: {', '.join(map(str, files))}" + ("" if known.ckpt_path else " (the best of the newest run)"))
    return run, trainer_kwargs(parsed.trainer, CommandLine()), parsed


def _fit(args: Sequence[str]) -> int:
    known, _ = look_ahead(args)
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
        say("fast_dev_run: nothing was written")
        return 0
    say(f"\n{text.fit_table(record, str(run.folder))}\n")
    if step == record["global_step"]:
        say(f"Nothing was left to train; to train on, raise --trainer.max_epochs above {record['epochs']}.")
    if run.checkpoint and run.checkpoint.stem == record["weights"]:
        where = "" if run.folder.parent == Path(LOG_DIR) else f" --ckpt_path {run.folder}"
        say(f"Next: {PROGRAM} {'test' if run.data.has_test_labels else 'predict'}{where}")
    return 0


def _validate(args: Sequence[str]) -> int:
    run, trainer, _ = load("validate", args)
    metrics = run.validate(**trainer)
    say(f"\nvalidation accuracy {metrics['accuracy']:.2%}   loss {metrics['loss']:.4f}")
    return 0


def _test(args: Sequence[str]) -> int:
    run, trainer, parsed = load("test", args, robustness={"type": bool, "default": False, "help": ROBUSTNESS})
    metrics = run.test(robustness=parsed.robustness, **trainer)
    report = run.folder / "report" / "index.html"
    say(f"\n{text.test_table(metrics)}\n\nReport: {report}" if metrics else "fast_dev_run: nothing was written")
    return 0


def _predict(args: Sequence[str]) -> int:
    run, trainer, parsed = load("predict", args, images={"type": str, "nargs": "+", "help": IMAGES})
    if parsed.images is None:
        run.predict(**trainer)
        say(f"Written: {', '.join(map(str, run.written))}" if run.written else "fast_dev_run: nothing was written")
        return 0
    from mnist_lightning.pictures.read import picture_files  # here, since OpenCV takes a while to import
    from mnist_lightning.pictures.recognize import write_digits

    uses_gpu = torch.cuda.is_available() and trainer.get("accelerator") != "cpu"
    net = run.model.net.to("cuda" if uses_gpu else "cpu")
    done = write_digits(run.folder, picture_files(parsed.images), net)
    say(f"\nDigits: {done.digits:,}   pictures: {done.pictures:,}   without a digit: {done.failures:,}")
    say(f"Written: {', '.join(map(str, done.written))}")
    return 1 if done.failures else 0


def _describe(args: Sequence[str]) -> int:
    output = {"type": str, "help": "Folder to write to; lightning_logs/describe_<data> by default."}
    draw = {"type": bool, "default": False, "help": AUGMENTATION}
    parsed = parse("describe", args, output=output, augmentation=draw)
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
    return 0


def _doctor(args: Sequence[str]) -> int:
    from mnist_lightning.doctor import doctor  # here, since no other verb needs it

    started = "as many as torchrun or srun started by default."
    options: dict[str, dict[str, Any]] = {
        "default_root_dir": {"type": str, "help": "Folder of lightning_logs; the current folder by default."},
        "accelerator": {"type": str, "default": "auto", "help": "What to run on: auto, cpu or gpu."},
        "devices": {"type": int | str, "default": "auto", "help": f"Devices per node: all there are, or {started}"},
        "num_nodes": {"type": int | None, "default": None, "help": f"Number of nodes: one, or {started}"},
    }
    parsed = parse("doctor", args, **options)
    log_dir = Path(parsed.default_root_dir or "") / LOG_DIR
    return doctor(parsed.data, log_dir, parsed.accelerator, parsed.devices, parsed.num_nodes)


COMMANDS = dict(zip(VERBS, (_fit, _validate, _test, _predict, _describe, _doctor), strict=True))


@rank_zero_only
def say(line: str) -> None:
    """Print a line, in the first process only."""
    print(line, flush=True)


def complain(message: str, error: BaseException) -> None:
    """Print on stderr what went wrong in one line, and the notes on it."""
    for line in (f"{PROGRAM}: {message}", *getattr(error, "__notes__", ())):
        print(printable(line), file=sys.stderr)


def quieten() -> None:
    """Hide messages that the user cannot act on."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what version 5 removes
    warnings.filterwarnings("ignore", message=f".*({NO_WARNING})")
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{name}").addFilter(lambda record: not NOT_NEWS.search(record.getMessage()))


def can_be_fixed(error: Exception) -> bool:
    """Return whether the user can fix an error: one of ours, or a setting that Lightning itself refuses."""
    if isinstance(error, (InputError, ArgumentError, argparse.ArgumentError, MisconfigurationException, OSError)):
        return True  # OSError: a disk that is full, a folder that may not be written
    source = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals.get("__name__", "")
    return isinstance(error, (ValueError, RuntimeError, ImportError)) and source.startswith("lightning.")


def main(args: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    It is 0; 1 if a picture gave no digit or a check failed; 2 if what the user gave cannot be used; or 128 and the
    number of the signal that stopped it.

    Args:
        args: The arguments: a verb and its options.
    """
    CommandLine.stopped_by = signal.SIGINT
    CommandLine.listen()
    quieten()
    try:
        if not args or args[0] in ("-h", "--help"):
            verbs = "\n".join(f"  {verb:<10}{description}" for verb, description in VERBS.items())
            print(f"usage: {PROGRAM} VERB [options]\n\n{verbs}\n\n{PROGRAM} VERB --help lists the options of a verb.")
            return 0
        if args[0] not in COMMANDS:
            raise InputError(f"the first argument must be one of {', '.join(VERBS)}, got {args[0]}")
        return COMMANDS[args[0]](args[1:])
    except KeyboardInterrupt as stop:
        if getattr(rank_zero_only, "rank", 0) == 0:
            complain(f"stopped by {signal.Signals(CommandLine.stopped_by).name}", stop)
        return 128 + CommandLine.stopped_by
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit raises it again
        return 1
    except Exception as error:
        if os.environ.get(DEBUG_SWITCH) or not can_be_fixed(error):
            raise
        line = condense(str(error))
        if isinstance(error, OSError) and error.strerror:
            line = f"{os.fsdecode(error.filename or 'writing failed')}: {error.strerror}"
        complain(f"error: {line}", error)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
