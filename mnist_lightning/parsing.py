"""The flags of the verbs, and the objects that they make."""

import argparse
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mnist_lightning import models  # noqa: F401  --model.net finds them by name once imported
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import augmentation, kaggle, torchvision, uci  # noqa: F401  --data finds them by name once imported
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError, condense, refusals
from mnist_lightning.training.callbacks import ValidationFigures  # noqa: F401  --trainer.callbacks finds it by name
from mnist_lightning.training.runs import LOG_DIR, read_config
from mnist_lightning.usage import CLASSES, PROGRAM, VERBS, about, closest


def parser_settings(verb: str) -> dict[str, Any]:
    """Return the arguments of every verb's parser."""
    prog = f"{PROGRAM} {verb}"
    return {"prog": prog, "description": VERBS[verb], "allow_abbrev": False, "exit_on_error": False}


class Parser(LightningArgumentParser):
    """A parser whose help leaves out long lists of classes."""

    def format_help(self, *args: Any) -> str:
        """Return the help of all flags, or of the class that ``--model.net.help CLASS`` names."""
        text = re.sub(r"known\s+subclasses:[^)]{2000,}", "any import path of such a class", super().format_help(*args))
        if found := re.search(r"Help for --([\w.]+)\.help=", self.description or ""):
            names = ", ".join(CLASSES.get(found[1], ()))
            text = re.sub(r"^usage: .*?\n\n", "", text, flags=re.S)
            text += f"\n--{found[1]} can be {names}, or any import path.\n" if names else ""
        return text


def read(parser: Parser, args: Sequence[str]) -> Namespace:
    """Parse.

    Raises:
        InputError: If a flag or a value is wrong; the message asks which name a misspelled one may mean.
    """
    try:
        return parser.parse_args(list(args))
    except ArgumentError as error:
        raise InputError(explain(str(error), LightningArgumentParser.format_help(parser))) from error


def explain(message: str, flags: str) -> str:
    """Return a message of jsonargparse in one line, which asks what a misspelled name may mean.

    Args:
        message: The message.
        flags: The help of all flags, with the classes that they know.
    """
    text = condense(message)
    key = text.partition(":")[0]
    if found := re.search(r"unrecognized arguments: ([^\s=+]+)", message):
        if found[1][0] != "-":
            return f"unknown argument {found[1]}; write --flag value, and pictures before the flags"
        return f"unknown flag {found[1]}" + closest(found[1], re.findall(r"(?<= )--[\w.]+", flags))
    if found := re.search(r"Option '(.*?)' is not accepted", message):
        classes: list[Any] = [locate(path) for path in re.findall(r"class_path[ =]'([\w.]+)'", message)]
        makers: list[Any] = [vars(base).get("__init__") for each in classes for base in each.__mro__]
        names = {name for make in filter(None, makers) for name in inspect.signature(make).parameters}
        return f"unknown flag {key}.{found[1]}" + closest(found[1], sorted(names), f"{key}.")
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        own = re.sub(r"\s", "", flags.partition(f"\n  {key} ")[2].partition("\n  --")[0])
        if hint := closest(found[1], [*CLASSES.get(key[2:], ()), *re.findall(r"\.(\w+)[,)]", own)]):
            return f"{key}: unknown class {found[1]}{hint}"
    return text


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
            parser_class=Parser,
            parser_kwargs=parser_settings("fit"),
            args=list(args),
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the other options, and the defaults."""
        for name in ("name", "ckpt_path", "teacher", "init_from"):
            number = "+" if name == "teacher" else None
            parser.add_argument(f"--{name}", type=str | None, nargs=number, help=about("fit")[name])
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        best = {"monitor": "val/acc", "mode": "max", "filename": "best", "enable_version_counter": False}
        parser.set_defaults({f"checkpoint.{name}": value for name, value in best.items()})
        classes = {"model.net": "mnist_lightning.MLP", "data": "mnist_lightning.MNIST"}
        parser.set_defaults({name: {"class_path": path} for name, path in classes.items()})

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and check that the settings can be written to ``config.yaml`` and read back."""
        self.config = read(parser, args)
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
    parser = Parser(**parser_settings(verb))
    parser.add_lightning_class_args(DigitDataModule, "data", subclass_mode=True)
    options["config"] = {"type": str}
    if own is not None:
        options |= {"ckpt_path": {"type": str, "nargs": "+"}, "tta": {"type": int, "default": 0}}
        parser.add_lightning_class_args(Trainer, "trainer")
    for name, option in options.items():
        parser.add_argument(f"--{name}", help=about(verb)[name], **option)
    data: dict[str, Any] = {"class_path": "mnist_lightning.MNIST"}
    for config in (own or {}, *(read_config(Path(path)) for path in known.config)):
        data = config.get("data") or data
    init_args = dict(data.get("init_args") or {})
    if verb != "describe":  # the others do not train
        init_args.pop("augmentation", None)
    parser.set_defaults({"data": {"class_path": data.get("class_path"), "init_args": init_args}})
    settings = read(parser, rest)
    with refusals():
        made: Namespace = parser.instantiate_classes(settings)
    return made
