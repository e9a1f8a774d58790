"""The command line: its verbs, and what each does when it is told nothing more."""

import logging
import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from jsonargparse._typehints import ActionTypeHint
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning import runs, signals
from mnist_lightning.callbacks import CalmProgressBar, EpochLines, RunRecord, SaveRunConfig
from mnist_lightning.checkpoints import check_fits, check_made_by, check_names, load_checkpoint
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import kaggle, mnist, uci  # noqa: F401  --data finds them by name once they are imported
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.describe import describe
from mnist_lightning.errors import InputError, condense, printable, refusals
from mnist_lightning.evaluation import report
from mnist_lightning.files import sweep
from mnist_lightning.loggers import HistoryLogger, TensorBoardRunLogger
from mnist_lightning.loop import use_direct_loop
from mnist_lightning.request import VERBS, read_settings, resolve, runs_root
from mnist_lightning.restoring import check_resumable, refuse_damage
from mnist_lightning.resume import LastCheckpoint, make_resumable
from mnist_lightning.writers import PictureWriter, PredictionWriter, ReportWriter

PROGRAM = "python -m mnist_lightning"
CKPT_PATH = (
    "A checkpoint file, a run folder (its best checkpoint), or 'best' or 'last' of the newest run; by default the best "
    "of the newest run. The data settings are the run's own unless flags say otherwise."
)
CKPT_PATH_OF_FIT = (
    "What to resume from: a run folder, or 'last' for the newest run, to go on in that folder with its own settings; "
    "or another checkpoint file, to start a new run from it. Model settings stay the checkpoint's, whatever the flags."
)
IMAGES = "Pictures of digits to read instead of the test images: PNG, JPEG, BMP, GIF, TIFF, WebP, or folders of them."
STRICT: dict[str, Any] = {"allow_abbrev": False, "exit_on_error": False}
DEBUG_SWITCH = "MNIST_LIGHTNING_DEBUG"


_known_subclasses = ActionTypeHint.extra_help


def _few_known_subclasses(action: ActionTypeHint) -> str:
    """Leave out of --help the list of every nn.Module there is: some 600 lines, twice."""
    text: str = _known_subclasses(action)  # type: ignore[no-untyped-call]
    return text if len(text) < 2000 else ", any import path of such a class"


ActionTypeHint.extra_help = _few_known_subclasses  # type: ignore[method-assign]


class DigitCLI(LightningCLI):
    """LightningCLI for ``DigitClassifier`` and the data modules, with one folder per run."""

    exit_code = 0

    def __init__(self, args: Sequence[str]) -> None:
        self._first = args[0] if args else None
        super().__init__(
            DigitClassifier,
            DigitDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveRunConfig,
            seed_everything_default=42,
            trainer_defaults={"max_epochs": 10, "enable_model_summary": False},
            parser_kwargs={
                "prog": PROGRAM,
                "description": "Train, test and use a classifier of handwritten digits.",
                **STRICT,
            },
            args=list(args),
        )

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Build the parser, and say in --help what Lightning's own docstrings leave out or say otherwise."""
        super().setup_parser(*args, **kwargs)
        assert self.parser._subcommands_action is not None
        for verb in ("describe", "doctor"):  # for --help alone: main takes these verbs elsewhere
            self.parser._subcommands_action.add_subcommand(verb, LightningArgumentParser())
        for choice in self.parser._subcommands_action._choices_actions:
            choice.help = VERBS[choice.dest]

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Build the parser of a verb, or where another one is asked for an empty one: building takes a while."""
        if self._first in ("-h", "--help") or (self._first in VERBS and self._first != subcommand):
            return LightningArgumentParser()
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.description = VERBS[subcommand]
        options = {action.dest: action for action in parser._actions}
        options["ckpt_path"].help = CKPT_PATH_OF_FIT if subcommand == "fit" else CKPT_PATH
        options["trainer.default_root_dir"].help = "Folder of lightning_logs; by default where you are."
        if subcommand == "predict":
            parser.add_argument("--images", type=str, nargs="+", default=None, metavar="FILE_OR_FOLDER", help=IMAGES)
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs and what their flags leave out: checkpoints load weights only, and tables are ours."""
        hidden = {"weights_only", "verbose", "return_predictions"}
        return {verb: skip | hidden for verb, skip in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint callbacks and the defaults of the recipe."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.set_defaults(
            {
                "model.net": {"class_path": "mnist_lightning.MLP"},
                "data": {"class_path": "mnist_lightning.MNIST"},
                "checkpoint.monitor": "val/acc",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the resolved arguments and check the checkpoint before anything else reads it."""
        self.request = resolve(args)
        self.checkpoint: dict[str, Any] = {}
        if self.request.checkpoint is not None:
            self.checkpoint = load_checkpoint(self.request.checkpoint)
            check_made_by(self.request.checkpoint, self.checkpoint, DigitClassifier)
            if args[0] == "fit":
                check_resumable(self.request.checkpoint, self.checkpoint)
        self.config = parser.parse_args(self.request.args)
        verb = self.config.subcommand
        if verb != "fit" and self.request.checkpoint is None:
            raise InputError(f"{verb} must be the first argument, to find its checkpoint")
        if self.request.checkpoint is not None:
            own = {} if self.request.run is None else read_settings(self.request.run / runs.CONFIG)
            check_names(self.request.checkpoint, self.checkpoint, self.config[verb].model.as_dict(), own.get("model"))
            # Lightning would download a file whose path begins with "http".
            self.config[verb].ckpt_path = os.path.join(os.curdir, self.request.checkpoint)
        seed = self.config[verb].seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InputError(f"--seed_everything must be in [0, 2**32), got {seed}")
        self.files: list[str] = []
        if verb == "predict" and self.config.predict.images is not None:
            from mnist_lightning.data.pictures import picture_files  # here, since OpenCV takes a while to import

            self.files = picture_files(self.config.predict.images)
            self.config.predict.images = None  # what follows would check thousands of names again and again

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a verb; where it is stopped, so are the processes that Lightning started for it."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            launcher = self.trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGTERM)
            raise

    def instantiate_classes(self) -> None:
        """Make the data module, the model and the trainer."""
        with refusals():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Check that the checkpoint fits the model, and make a trainer that writes into the run folder."""
        if self.request.checkpoint is not None:
            check_fits(self.request.checkpoint, self.checkpoint["state_dict"], self.model)
            _say(f"Checkpoint: {self.request.checkpoint}{self.request.why}")
        self.folder: Path | None = None
        self.predictions: PictureWriter | PredictionWriter | None = None
        with self._new_folder_discarded_without_results(), refusals():
            trainer = super().instantiate_trainer(**self._trainer_settings(), **kwargs)
        use_direct_loop(trainer)
        make_resumable(trainer)
        refuse_damage(trainer)
        return trainer

    def _trainer_settings(self) -> dict[str, Any]:
        """Choose the run folder, and what this verb writes there with which callbacks and loggers."""
        config = self._get(self.config_init, "trainer")
        if config.barebones:
            raise InputError("--trainer.barebones has no checkpoints and no logs, so it would leave nothing of the run")
        if self.files and config.fast_dev_run:
            raise InputError("--trainer.fast_dev_run writes nothing, so --images would have no answer: leave one out")
        given = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        has_bar = any(isinstance(callback, ProgressBar) for callback in given)
        settings: dict[str, Any] = {}
        callbacks: list[Callback] = []
        loggers: list[Logger] = []
        if self.subcommand != "fit":
            self.save_config_callback = None
        if config.fast_dev_run or config.enable_checkpointing is False:
            for key in ("checkpoint", "last_checkpoint"):
                self._parser(self.subcommand).callback_keys.remove(key)
        if self.subcommand != "validate" and not config.fast_dev_run:
            folder = self.folder = self._run_folder()
            settings["default_root_dir"] = str(folder)
            if self.subcommand == "fit":
                continues = self.request.run is not None
                if continues and _is_rank_zero():
                    sweep(folder)
                callbacks.append(RunRecord(folder, self._get(self.config, "seed_everything"), continues))
                self._place_best_checkpoint(str(folder / runs.CHECKPOINTS))
                self.save_config_kwargs = {"folder": folder}
                resumed_step = self.checkpoint["global_step"] if continues else None
                loggers = [TensorBoardRunLogger(folder, resumed_step), HistoryLogger(folder, resumed_step)]
            elif self.subcommand == "test":
                self.report = ReportWriter(folder)
                callbacks.append(self.report)
                loggers = [TensorBoardRunLogger(folder)]
            elif self.files:
                self.predictions = PictureWriter(folder, self.files)
                # The files are read once and their table printed as they come: by one process, and without a bar.
                settings |= {"devices": 1, "num_nodes": 1, "enable_progress_bar": has_bar}
            else:
                self.predictions = PredictionWriter(folder)
        if config.logger in (None, True):
            settings["logger"] = loggers or False
        if self.predictions is not None:
            callbacks.append(self.predictions)
        shows_progress = settings.get("enable_progress_bar", config.enable_progress_bar) is not False
        if not has_bar and shows_progress:
            callbacks.append(CalmProgressBar() if sys.stdout.isatty() else EpochLines())
        self.trainer_defaults["callbacks"] = callbacks
        return settings

    def _place_best_checkpoint(self, folder: str) -> None:
        best = self._get(self.config_init, "checkpoint")
        if best.dirpath is not None or best.filename != "best":
            raise InputError("--checkpoint.dirpath and filename are fixed: test must find the best checkpoint")
        if best.save_last:
            raise InputError("--checkpoint.save_last is not needed: last.ckpt is kept without it")
        best.dirpath = folder

    def _run_folder(self) -> Path:
        if self.request.run is not None:
            return self.request.run
        # Only rank 0 writes, so only it needs a folder of its own.
        return runs.claim(self.request.root) if _is_rank_zero() else self.request.root

    @contextmanager
    def _new_folder_discarded_without_results(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            trainer: Trainer | None = getattr(self, "trainer", None)
            trained = trainer is not None and trainer.global_step not in (0, self.checkpoint.get("global_step"))
            if self.folder is not None and self.request.run is None and not trained and _is_rank_zero():
                runs.discard(self.folder)
            raise

    def fit(self, **kwargs: Any) -> None:
        """Train, and where that is stopped say how to go on."""
        try:
            with self._new_folder_discarded_without_results():
                self.trainer.fit(weights_only=True, **kwargs)
        except BaseException as error:
            last = None if self.folder is None else self.folder / runs.CHECKPOINTS / runs.LAST
            if last is not None and last.exists():
                with suppress(InputError):  # what stopped the run is to be told, whatever else
                    step = load_checkpoint(last)["global_step"]
                    run = shlex.quote(str(self.folder))
                    error.add_note(f"Saved: {step:,} updates. To go on: {PROGRAM} fit --ckpt_path {run}")
            raise

    def validate(self, **kwargs: Any) -> None:
        """Measure the checkpoint on the validation images."""
        self.trainer.validate(weights_only=True, verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """Measure the checkpoint on the test images."""
        with self._new_folder_discarded_without_results():
            self.trainer.test(weights_only=True, verbose=False, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Classify the test images, or the digits in picture files."""
        if self.files:
            from mnist_lightning.data.picture_loader import picture_loader

            loader = picture_loader(self.files)
            kwargs |= {"datamodule": None, "dataloaders": loader}
            if loader.num_workers:
                torch.set_num_threads(1)  # the cores are the workers': there is far more to read than to compute
        with self._new_folder_discarded_without_results():
            self.trainer.predict(weights_only=True, return_predictions=False, **kwargs)

    @rank_zero_only
    def after_fit(self) -> None:
        """Say what the run came to, where it is, and what to type next."""
        if self.folder is None:
            print("fast_dev_run: nothing was written")
            return
        record = runs.read_record(self.folder)  # a spawned process may have written it
        assert record is not None
        print(f"\n{report.fit_table(record, str(self.folder))}\n")
        if self.checkpoint.get("global_step") == record["global_step"]:
            print(f"Nothing was left to train; to go on, raise --trainer.max_epochs above {record['epochs']}.")
        if (self.folder / runs.CHECKPOINTS / "best.ckpt").exists():
            home = runs_root(None)
            found = self.folder.parent == home and runs.newest(home) == self.folder
            verb = "test" if self.datamodule.has_test_labels else "predict"
            print(f"Next: {PROGRAM} {verb}{'' if found else f' --ckpt_path {self.folder}'}")

    @rank_zero_only
    def after_validate(self) -> None:
        """Print the validation figures."""
        metrics = self.trainer.callback_metrics
        if metrics:
            print(f"\nvalidation accuracy {metrics['val/acc']:.2%}   loss {metrics['val/loss']:.4f}")
        else:
            print("Nothing was measured.")

    @rank_zero_only
    def after_test(self) -> None:
        """Print the test figures."""
        if self.folder is not None and self.report.metrics:
            print(f"\n{report.test_table(self.report.metrics)}\n\nReport: {self.report.folder / 'index.html'}")
        else:
            print("Nothing was written.")

    @rank_zero_only
    def after_predict(self) -> None:
        """Say where the predictions are."""
        written = [] if self.predictions is None else self.predictions.written
        if isinstance(self.predictions, PictureWriter):
            print(f"\n{self.predictions.summary()}")
            self.exit_code = 1 if self.predictions.failures else 0
        print(f"Written: {', '.join(map(str, written))}" if written else "Nothing was written.")


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def _say(text: str) -> None:
    print(printable(text), flush=True)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename or 'writing failed')}: {error.strerror}"
    return condense(str(error))


def _complain(message: str, error: BaseException) -> None:
    """Print what went wrong in one line, and what there is to be said of it beside that."""
    for line in (f"{PROGRAM}: {message}", *getattr(error, "__notes__", ())):
        print(printable(line), file=sys.stderr)


def _quieten() -> None:
    """Keep from the user what neither they nor we can act on."""
    # Lightning 2.6 calls what jsonargparse 5 will remove.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in (
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 on torch 2.15
        r"The '\w+' does not have many workers",  # the data are in memory: workers would slow it down
        r"The number of training batches \(\d+\) is smaller than the logging interval",  # all is logged per epoch
        r"Checkpoint directory .* exists and is not empty",  # a run that is continued
        r"Be aware that when using `ckpt_path`, callbacks used to create",  # they only watch training
        r"The `srun` command is available on your system but is not used",  # it is where SLURM is, wanted or not
        r"The dirpath has changed from",  # the run was moved, or a new one starts from its checkpoint
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(f"{name}.utilities.rank_zero").addFilter(_is_news)
    logging.getLogger("lightning.fabric.utilities.seed").addFilter(_is_news)
    threading.excepthook = _thread_excepthook


def _thread_excepthook(args: Any) -> None:
    """Leave out the traceback of TensorBoard's writer where a disk is full: the main thread gets the same error."""
    if not (issubclass(args.exc_type, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(args)


def _is_news(record: logging.LogRecord) -> bool:
    told_better = (
        "💡 Tip",
        "Seed set to",  # run.json has it
        "GPU available",  # fit says which device it trains on
        "TPU available: False",
        "Restoring states from",
        "Restored all states from",
        "Loaded model weights from",
        "`Trainer.fit` stopped: `max_epochs=",
    )
    return not record.getMessage().split("] ", 1)[-1].startswith(told_better)  # after "[rank: 1] "


def _is_users(error: Exception) -> bool:
    """Return whether an error is the user's to mend: one of ours, or a setting that Lightning itself refuses."""
    if isinstance(error, (InputError, ArgumentError, MisconfigurationException, OSError)):
        return True  # OSError: a disk that is full, a folder that may not be written
    # Lightning raises these of its own accord for settings it cannot work with, often not before fit.
    source = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals.get("__name__", "")
    return isinstance(error, (ValueError, RuntimeError, ImportError)) and source.startswith("lightning.")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    It is 0, or 1 when some picture gave no digit or a check failed, or 2 when what the user gave cannot be used, or 128
    more than the number of a signal that stopped it.

    Args:
        args: The arguments; those of the process by default.
    """
    with signals.heard():
        return _run(list(sys.argv[1:] if args is None else args))


def _run(args: list[str]) -> int:
    _quieten()
    try:
        if args[:1] == ["describe"]:  # it trains nothing, so it needs neither a model nor a trainer
            describe(args[1:], prog=f"{PROGRAM} describe", description=VERBS["describe"], **STRICT)
            return 0
        if args[:1] == ["doctor"]:
            from mnist_lightning.doctor import doctor  # here, since no other verb needs it

            return doctor(args[1:], prog=f"{PROGRAM} doctor", description=VERBS["doctor"], **STRICT)
        return DigitCLI(args).exit_code
    except signals.Interrupted as stop:
        if _is_rank_zero():
            _complain(f"stopped by {stop}", stop)
        return stop.code
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        return 1
    except Exception as error:
        if os.environ.get(DEBUG_SWITCH) or not _is_users(error):
            raise
        _complain(f"error: {_one_line(error)}", error)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
