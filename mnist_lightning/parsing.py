"""The flags of the verbs, and the objects that they make."""

import argparse
import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mnist_lightning import models  # noqa: F401  --model.net finds them by name once imported
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import augmentation, drawings, kaggle, torchvision, uci  # noqa: F401  --data finds them by name once imported
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError, condense
from mnist_lightning.training.callbacks import (
    LOST_AVERAGE,
    ValidationFigures,  # noqa: F401  --trainer.callbacks finds it by name
)
from mnist_lightning.training.runs import LOG_DIR, read_config
from mnist_lightning.usage import DEFAULTS, PROGRAM, VERBS, about, closest

# Defaults of Lightning's callbacks, such as Timer's interval, are enumerations, which PyYAML cannot write.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))
OF_EVERY_SOURCE = inspect.signature(DigitDataModule).parameters


def parser_settings(verb: str) -> dict[str, Any]:
    """Return the arguments of every verb's parser."""
    prog = f"{PROGRAM} {verb}"
    return {"prog": prog, "description": VERBS[verb], "allow_abbrev": False, "exit_on_error": False}


class Parser(LightningArgumentParser):
    """A parser whose help leaves out long lists of classes, and whose errors are InputErrors of one line."""

    def format_help(self, *args: Any) -> str:
        """Return the help of all flags, or of the class that ``--model.net.help CLASS`` names."""
        text = re.sub(r"known\s+subclasses:[^)]{2000,}", "any import path of such a class", super().format_help(*args))
        return re.sub(r"^usage: .*?\n\n(?=Help for --)", "", text, flags=re.S)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Return the settings; a mistake is an InputError."""
        try:
            return super().parse_args(*args, **kwargs)
        except ArgumentError as error:
            raise InputError(explain(str(error), super().format_help())) from error

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Any:
        """Make the objects that the settings name; what they refuse is an InputError."""
        try:
            return super().instantiate_classes(*args, **kwargs)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(condense(str(error))) from error


def explain(message: str, flags: str) -> str:
    """Return a message of jsonargparse in one line, which says what a misspelled name may mean.

    Args:
        message: The message.
        flags: The help of all flags, with the classes that they know.
    """
    text = condense(message)
    key = text.partition(":")[0]
    if found := re.search(r"unknown argument (\S+)", text):
        return text + closest(found[1], re.findall(r"(?<= )--[\w.]+", flags))
    if found := re.search(r"Option '(.*?)' is not accepted", message):
        classes: list[Any] = [locate(path) for path in re.findall(r"class_path[ =]'([\w.]+)'", message)]
        makers = [base.__init__ for each in classes for base in each.__mro__]
        names = {name for make in makers for name in inspect.signature(make).parameters}
        return f"unknown argument {key}.{found[1]}" + closest(found[1], sorted(names), f"{key}.")
    if found := re.search(r"unknown class (\w+)", text):
        own = flags.partition(f"\n  {key} ")[2].partition("\n  --")[0]
        return text + closest(found[1], re.findall(r"\.(\w+)[,)]", own))
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
        for name in ("name", "ckpt_path", "teacher", "init_from", "freeze", "seeds"):
            number = "+" if name in ("teacher", "freeze", "seeds") else None
            parser.add_argument(f"--{name}", type=str | None, nargs=number, help=about("fit")[name])
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        best = {"monitor": "val/acc", "mode": "max", "filename": "best", "enable_version_counter": False}
        parser.set_defaults({f"checkpoint.{name}": value for name, value in best.items()})
        parser.set_defaults({flag: {"class_path": path} for flag, path in DEFAULTS.items()})

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and check that the settings can be written to ``config.yaml`` and read back."""
        self.config = parse_chosen(parser, read_configs(args))
        config = self.config.clone()
        config.name = config.ckpt_path = config.seeds = None  # they belong to this command, not to the recipe
        if "StochasticWeightAveraging" in str(config.trainer.callbacks):
            raise InputError(LOST_AVERAGE)
        with warnings.catch_warnings(action="ignore"):  # the same, in several lines
            self.text = parser.dump(config, skip_none=False)
        if lost := re.search(r".*Unable to serialize.*", self.text):
            raise InputError(f"this setting cannot be written to config.yaml and read back: {lost[0].strip()}")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Leave the Trainer to ``fit``."""


def parse_chosen(parser: Parser, words: Sequence[str | dict[str, Any]]) -> Namespace:
    """Parse twice, so that a chosen class has its own defaults and what was written for it, and nothing else.

    jsonargparse would keep the arguments of the default class, or of a file's class, where the names are the same.

    Args:
        parser: The parser.
        words: What ``read_configs`` returned.
    """
    first = parser.parse_args([word for word in as_flags(words) if not word.startswith("--print_config")])
    chosen = {
        place: settings.class_path
        for place, settings in first.items(branches=True)
        if isinstance(settings, Namespace) and "class_path" in settings
    }
    defaults = parser.get_defaults()
    for place, path in chosen.items():
        if ".init_args." not in place and not is_class(defaults.get(f"{place}.class_path"), path):
            parser.set_defaults({place: {"class_path": path}})
    kept = [written_for(chosen, word) if isinstance(word, dict) else word for word in words]
    parsed: Namespace = parser.parse_args(as_flags(kept))
    return parsed


def read_configs(args: Sequence[str]) -> list[str | dict[str, Any]]:
    """Return the arguments, with the settings of each ``--config`` file in its place.

    Raises:
        InputError: If a file cannot be read.
    """
    words: list[str | dict[str, Any]] = []
    rest = iter(args)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-c"):
            words.append(read_config(Path(value if equals else next(rest, ""))))
        else:
            words.append(word)
    return words


def as_flags(words: Sequence[str | dict[str, Any]]) -> list[str]:
    """Return the arguments for a parser: settings become the text of a file."""
    return [f"--config={yaml.safe_dump(word)}" if isinstance(word, dict) else word for word in words]


def written_for(chosen: Mapping[str, str], settings: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return the settings of a file without those for a class that was not chosen.

    The arguments of every data module stay: they mean the same in each.

    Args:
        chosen: The import path of each class that was chosen, by its place, such as ``model.net``.
        settings: The settings, which may be nested.
        place: Where they are, with a dot at its end.
    """
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        inner = f"{place}{key}"
        given = value if isinstance(value, dict) else {"class_path": value}
        if inner in chosen and "class_path" in given and not is_class(given["class_path"], chosen[inner]):
            if inner != "data":
                continue
            arguments = given.get("init_args") or {}
            value = {"init_args": {name: arguments[name] for name in arguments if name in OF_EVERY_SOURCE}}
        kept[key] = written_for(chosen, value, f"{inner}.") if isinstance(value, dict) else value
    return kept


def leave_out(names: set[str], settings: Any) -> Any:
    """Return settings without some names."""
    is_section = isinstance(settings, dict)
    return {name: value for name, value in settings.items() if name not in names} if is_section else settings


def is_class(name: str | None, path: str) -> bool:
    """Return whether a name, such as ``CNN`` or an import path, means the class with an import path."""
    return name is not None and (f".{path}".endswith(f".{name}") or locate(name) is locate(path))


def look_ahead(args: Sequence[str]) -> argparse.Namespace:
    """Read the flags that choose the run: the defaults of the other flags come from it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--ckpt_path", nargs="+")
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--trainer.default_root_dir", dest="root", default="")
    known, _ = parser.parse_known_args(list(args))
    known.log_dir = Path(known.root) / LOG_DIR
    return known


def parse(verb: str, args: Sequence[str], own: dict[str, Any] | None = None, **options: dict[str, Any]) -> Namespace:
    """Parse a verb's flags: the data's, with the run's settings as defaults, the Trainer's if it uses one, its own."""
    parser = Parser(**parser_settings(verb), print_config=None)
    parser.add_lightning_class_args(DigitDataModule, "data", subclass_mode=True)
    parser.add_argument("--config", action="config", help=about(verb)["config"])
    if own is not None:
        options["ckpt_path"] = {"type": str, "nargs": "+"}
    if own is not None and verb != "export":
        options["tta"] = {"type": int, "default": 0}
        parser.add_lightning_class_args(Trainer, "trainer")
    for name, option in options.items():
        parser.add_argument(f"--{name}", help=about(verb)[name], **option)
    parser.set_defaults({"data": {"class_path": DEFAULTS["data"]}})

    unused = {"augmentation"} if verb != "describe" else set()  # the others do not train
    words: list[str | dict[str, Any]] = []
    for word in (own or {}, *read_configs(args)):
        if isinstance(word, dict):
            data = leave_out(unused, word.get("data"))
            if isinstance(data, dict) and "init_args" in data:
                data["init_args"] = leave_out(unused, data["init_args"])
            word = {"data": data} if data else {}
        words.append(word)
    made: Namespace = parser.instantiate_classes(parse_chosen(parser, words))
    return made
