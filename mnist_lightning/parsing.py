"""The flags of the verbs, and the objects that they make."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mnist_lightning import models  # noqa: F401  --model.net finds them by name once imported
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import augmentation, kaggle, torchvision, uci  # noqa: F401  --data finds them by name once imported
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError, refusals
from mnist_lightning.training.callbacks import ValidationFigures  # noqa: F401  --trainer.callbacks finds it by name
from mnist_lightning.training.run import LOG_DIR, read_config

PROGRAM = "mnist-lightning" if Path(sys.argv[0]).stem == "mnist-lightning" else "python -m mnist_lightning"
VERBS = {
    "fit": "Train, and keep the checkpoint with the best validation accuracy.",
    "validate": "Measure a checkpoint on the validation images.",
    "test": "Measure a checkpoint on the test images, and write a report.",
    "predict": "Classify the test images, or the digits in your own pictures.",
    "describe": "Print and draw what a data set holds: its digits, its pixels, its splits.",
    "doctor": "Check in seconds whether a machine or a cluster allocation can run a training.",
}
OPTIONS = {
    "name": "Name of the run folder in lightning_logs; version_N by default.",
    "ckpt_path": "Resume a run in its own folder, with its own settings: the folder, or last for the newest run.",
    "teacher": "Learn the probabilities of other trained networks instead of the labels: run folders or files.",
    "init_from": "Start with the weights of another run: its folder, or a checkpoint file.",
}
CKPT_PATH = (
    "A run folder (its best checkpoint), a checkpoint file, or best or last of the newest run; the best of the newest "
    "run by default. The data settings are the run's own unless flags say otherwise. Several runs make an ensemble: "
    "their probabilities are averaged."
)

TTA = (
    "Number of random views of each image to average with the image itself (test-time augmentation). The run's own "
    "augmentation makes them, or the default one."
)


def parser_settings(verb: str) -> dict[str, Any]:
    """Return the arguments of every verb's parser."""
    prog = f"{PROGRAM} {verb}"
    return {"prog": prog, "description": VERBS[verb], "allow_abbrev": False, "exit_on_error": False}


class FitCLI(LightningCLI):
    """LightningCLI's parser of the model, the data and the Trainer; it creates the first two."""

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            DigitClassifier,
            DigitDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=42,
            trainer_defaults={"max_epochs": 10, "enable_model_summary": False},
            parser_kwargs=parser_settings("fit"),
            args=list(args),
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the other options, and the defaults."""
        for name, description in OPTIONS.items():
            several: dict[str, Any] = {"nargs": "+"} if name == "teacher" else {}
            parser.add_argument(f"--{name}", type=str | None, default=None, help=description, **several)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        best = {"monitor": "val/acc", "mode": "max", "filename": "best", "enable_version_counter": False}
        parser.set_defaults({f"checkpoint.{name}": value for name, value in best.items()})
        classes = {"model.net": "mnist_lightning.MLP", "data": "mnist_lightning.MNIST"}
        parser.set_defaults({name: {"class_path": path} for name, path in classes.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and check that the settings can be written to ``config.yaml`` and read back."""
        if {"-h", "--help"} & set(args):  # otherwise it lists every nn.Module, about 600 lines
            print(re.sub(r"known\s+subclasses:[^)]{2000,}", "any import path of such a class", parser.format_help()))
            raise SystemExit(0)
        self.config = parser.parse_args(args)
        config = self.config.clone()
        config.name = config.ckpt_path = config.init_from = None  # they belong to this command, not to the recipe
        self.text = parser.dump(config, skip_none=False)
        if lost := re.search(r".*Unable to serialize.*", self.text):
            raise InputError(f"this setting cannot be written to config.yaml and read back: {lost[0].strip()}")
        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InputError(f"--seed_everything must be in [0, 2**32), got {seed}")

    def instantiate_classes(self) -> None:
        """Make the data module, the model, and what the Trainer is given."""
        with refusals():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Leave the Trainer to ``fit``."""


def look_ahead(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the flags that choose the run, since the defaults of the other flags come from it; return both."""
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--ckpt_path", nargs="+")
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--trainer.default_root_dir", dest="root", default="")
    known, rest = parser.parse_known_args(list(args))
    known.log_dir = Path(known.root) / LOG_DIR
    return known, rest


def parse(verb: str, args: Sequence[str], own: dict[str, Any] | None = None, **options: dict[str, Any]) -> Namespace:
    """Parse a verb's flags: the data's, with the run's settings as defaults, the Trainer's, and its own."""
    known, rest = look_ahead(args)
    if own is None and known.ckpt_path:
        raise InputError(f"{verb} takes no --ckpt_path, got {' '.join(known.ckpt_path)}")
    parser = LightningArgumentParser(**parser_settings(verb))
    parser.add_argument("--config", type=str, help="A recipe or a run's config.yaml: its data settings are used.")
    parser.add_lightning_class_args(DigitDataModule, "data", subclass_mode=True)
    if own is not None:
        parser.add_argument("--ckpt_path", type=str, nargs="+", help=CKPT_PATH)
        parser.add_argument("--tta", type=int, default=0, help=TTA)
        parser.add_lightning_class_args(Trainer, "trainer")
    for name, option in options.items():
        parser.add_argument(f"--{name}", **option)
    data: dict[str, Any] = {"class_path": "mnist_lightning.MNIST"}
    for config in (own or {}, *(read_config(Path(path)) for path in known.config)):
        data = config.get("data") or data
    init_args = dict(data.get("init_args") or {})
    if verb != "describe":  # the others do not train
        init_args.pop("augmentation", None)
    parser.set_defaults({"data": {"class_path": data.get("class_path"), "init_args": init_args}})
    settings = parser.parse_args(rest)
    with refusals():
        made: Namespace = parser.instantiate_classes(settings)
    return made
