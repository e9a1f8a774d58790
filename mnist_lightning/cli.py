"""The command line: fit, validate, test and predict, and what each does when it is told nothing more."""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning import runs
from mnist_lightning.callbacks import EpochLines, PredictionWriter, ReportWriter, RunRecord, SaveRunConfig
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.evaluation import report
from mnist_lightning.loggers import HistoryLogger, TensorBoardLogger

PROGRAM = "python -m mnist_lightning"
DEBUG_SWITCH = "MNIST_LIGHTNING_DEBUG"
VERBS = ("fit", "validate", "test", "predict")


class Request(NamedTuple):
    """What the arguments ask for once the newest run is looked up."""

    args: list[str]
    root: Path  # the folder of runs
    checkpoint: Path | None  # what to start from
    run: Path | None  # the run folder to continue or to write into
    why: str = ""  # how the checkpoint was found, where the user did not name it


def resolve(args: Sequence[str]) -> Request:
    """Turn what ``--ckpt_path`` leaves open into explicit arguments.

    ``validate``, ``test`` and ``predict`` without it take the best checkpoint of the newest run, and any run's data
    settings go with its checkpoint. ``fit`` from a run's last checkpoint continues that run with all its settings.
    The run's settings come first, so whatever the user gives overrides them.

    Raises:
        InputError: If there is no such checkpoint, or no run yet.
    """
    verb = args[0] if args else None
    if verb not in VERBS or any(arg in ("-h", "--help") or arg.startswith("--print_config") for arg in args):
        return Request(list(args), _root(None), None, None)
    given = _look_ahead(args[1:])
    root = _root(given["trainer.default_root_dir"])
    default = "last" if verb == "fit" else "best"
    ckpt_path = given["ckpt_path"] or (None if verb == "fit" else default)
    if ckpt_path is None:
        return Request(list(args), root, None, None)

    checkpoint = runs.find_checkpoint(ckpt_path, root, default)
    run = runs.run_of(checkpoint)
    settings: list[str] = []
    if run is not None and verb == "fit":
        settings = ["--config", str(run / runs.CONFIG)]
    elif run is not None:
        data = yaml.safe_load((run / runs.CONFIG).read_text())["data"]
        settings = ["--config", json.dumps({"data": data})]
    if verb == "fit" and checkpoint.name != "last.ckpt":
        run = None  # another branch from an older state: the run it comes from stays as it is
    why = f" (the {ckpt_path} of the newest run)" if ckpt_path in runs.KEYWORDS else ""
    return Request([verb, *settings, *args[1:], "--ckpt_path", str(checkpoint)], root, checkpoint, run, why)


def _root(default_root_dir: str | None) -> Path:
    return Path(default_root_dir or "") / "lightning_logs"


def _look_ahead(args: Sequence[str]) -> dict[str, str | None]:
    """Read two settings from flags and configuration files before the parser itself does; the last one given wins."""
    found: dict[str, str | None] = {"ckpt_path": None, "trainer.default_root_dir": None}

    class FromConfig(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
            try:
                config = yaml.safe_load(Path(value).read_text())
            except (OSError, ValueError, yaml.YAMLError):
                return  # the parser will say what is wrong with it
            for name in found:
                node: Any = config
                for key in name.split("."):
                    node = node.get(key) if isinstance(node, dict) else None
                if node is not None:
                    setattr(namespace, name, str(node))

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action=FromConfig)
    for name in found:
        parser.add_argument(f"--{name}", dest=name)
    known, _ = parser.parse_known_args(list(args))
    return {name: getattr(known, name) for name in found}


class DigitCLI(LightningCLI):
    """LightningCLI for ``DigitClassifier`` and the data modules, with one folder per run."""

    def __init__(self, args: Sequence[str]) -> None:
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
                "allow_abbrev": False,
                "exit_on_error": False,
            },
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs and what their flags leave out: checkpoints load weights only, and tables are ours."""
        hidden = {"weights_only", "verbose", "return_predictions"}
        return {verb: skip | hidden for verb, skip in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint callback and the defaults of the recipe."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "model.net": {"class_path": "mnist_lightning.models.MLP"},
                "data": {"class_path": "mnist_lightning.data.MNIST"},
                "checkpoint.monitor": "val/acc",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the resolved arguments and check the checkpoint before anything else reads it."""
        self.request = resolve(args)
        self.state_dict: dict[str, Any] = {}
        if self.request.checkpoint is not None:
            self.state_dict = runs.load_checkpoint(self.request.checkpoint)["state_dict"]
        self.config = parser.parse_args(self.request.args)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Choose the run folder and make a trainer that writes into it."""
        if self.request.checkpoint is not None:
            runs.check_fits(self.request.checkpoint, self.state_dict, self.model)
            _say(f"Checkpoint: {self.request.checkpoint}{self.request.why}")
        config = self._get(self.config_init, "trainer")
        callbacks: list[Callback] = []
        loggers: list[Logger] = []
        self.folder: Path | None = None
        if self.subcommand != "validate" and not config.fast_dev_run:
            folder = self.folder = self._run_folder()
            kwargs["default_root_dir"] = str(folder)
            if self.subcommand == "fit":
                self._get(self.config_init, "checkpoint").dirpath = str(folder / runs.CHECKPOINTS)
                self.record = RunRecord(folder, self._get(self.config, "seed_everything"), self.request.run is not None)
                callbacks.append(self.record)
                loggers = [TensorBoardLogger(folder), HistoryLogger(folder)]
                self.save_config_kwargs = {"folder": folder}
            elif self.subcommand == "test":
                self.report = ReportWriter(folder)
                callbacks.append(self.report)
                loggers = [TensorBoardLogger(folder)]
            else:
                callbacks.append(PredictionWriter(folder))
        if self.subcommand != "fit":
            self.save_config_callback = None
        if config.logger in (None, True):
            kwargs["logger"] = loggers or False
        if config.enable_progress_bar is not False and not sys.stdout.isatty():
            callbacks.append(EpochLines())
        self.trainer_defaults["callbacks"] = callbacks
        with self._discarding_empty_folder():
            return super().instantiate_trainer(**kwargs)

    def _run_folder(self) -> Path:
        if self.request.run is not None:
            return self.request.run
        # Only rank 0 writes, so only it needs a folder of its own.
        return runs.claim(self.request.root) if getattr(rank_zero_only, "rank", 0) == 0 else self.request.root

    @contextmanager
    def _discarding_empty_folder(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self.folder is not None and self.request.run is None:
                runs.discard(self.folder)
            raise

    def fit(self, **kwargs: Any) -> None:
        """Train."""
        with self._discarding_empty_folder():
            self.trainer.fit(weights_only=True, **kwargs)

    def validate(self, **kwargs: Any) -> None:
        """Measure the checkpoint on the validation images."""
        self.trainer.validate(weights_only=True, verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """Measure the checkpoint on the test images."""
        with self._discarding_empty_folder():
            self.trainer.test(weights_only=True, verbose=False, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Classify the test images."""
        with self._discarding_empty_folder():
            self.trainer.predict(weights_only=True, return_predictions=False, **kwargs)

    def after_fit(self) -> None:
        """Say what the run came to, where it is, and what to type next."""
        if self.folder is None:
            _say("fast_dev_run: nothing was written")
            return
        # From another folder of runs, the next command must say where to look.
        where = "" if self.request.root == _root(None) else f" --ckpt_path {self.folder}"
        _say(
            f"\n{report.fit_table(self.record.summary)}\n{'Run folder':<25} {self.folder}\n\n"
            f"Next: {PROGRAM} test{where}"
        )

    def after_validate(self) -> None:
        """Print the validation figures."""
        metrics = self.trainer.callback_metrics
        _say(f"\nvalidation accuracy {metrics['val/acc']:.2%}   loss {metrics['val/loss']:.4f}")

    def after_test(self) -> None:
        """Print the test figures."""
        if self.folder is not None:
            _say(f"\n{report.test_table(self.report.metrics)}\n\nWritten: {self.report.folder / 'metrics.json'}")

    def after_predict(self) -> None:
        """Say where the predictions are."""
        if self.folder is not None:
            _say(f"Written: {self.folder / 'predictions.csv'}")


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


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
        r"The dirpath has changed from",  # the run was moved, or a new one starts from its checkpoint
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(f"{name}.utilities.rank_zero").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    told_better = (
        "💡 Tip",
        "TPU available: False",
        "Restoring states from",
        "Restored all states from",
        "Loaded model weights from",
        "`Trainer.fit` stopped: `max_epochs=",
    )
    return not record.getMessage().startswith(told_better)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 when what the user gave cannot be used.

    Args:
        args: The arguments; those of the process by default.
    """
    _quieten()
    try:
        DigitCLI(sys.argv[1:] if args is None else args)
    except (InputError, ArgumentError, MisconfigurationException) as error:
        if os.environ.get(DEBUG_SWITCH):
            raise
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
