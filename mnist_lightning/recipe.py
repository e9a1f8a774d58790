"""From flags or a configuration file to what ``fit`` takes: the model, the data, the settings."""

import copy
import inspect
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.seed import isolate_rng

from mnist_lightning import networks
from mnist_lightning.checkpoints import as_list
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import augmentation, drawings, kaggle, mnist, uci  # noqa: F401, RUF100
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import PROGRAM, InputError, closest, condense
from mnist_lightning.files import read_config
from mnist_lightning.settings import difference
from mnist_lightning.training.callbacks import ValidationFigures  # noqa: F401, RUF100
from mnist_lightning.training.fit import LOST_AVERAGE, fit
from mnist_lightning.training.resume import FREE
from mnist_lightning.training.run import Run

# Defaults of Lightning's callbacks, such as Timer's interval, are enumerations, which PyYAML cannot
# write.
yaml.SafeDumper.add_multi_representer(
    Enum, lambda dumper, value: dumper.represent_data(value.value)
)
OF_EVERY_SOURCE = inspect.signature(DigitDataModule).parameters
# A file may have these, which belong to one command and not to the recipe.
OF_ONE_COMMAND = ("name", "ckpt_path", "seeds")
IN_TABLE = "See the table of --help."
DEFAULT_NET, DEFAULT_DATA = "mnist_lightning.MLP", "mnist_lightning.MNIST"


def _parser_settings(verb: str) -> dict[str, Any]:
    """Return the arguments of a verb's parser."""
    return {
        "prog": f"{PROGRAM} {verb}",
        "description": "All flags of the sections that the verb takes.",
        "allow_abbrev": False,
        "exit_on_error": False,
    }


class Parser(LightningArgumentParser):
    """A parser whose help leaves out long lists of classes; its errors are InputErrors."""

    def format_help(self, *args: Any) -> str:
        """Return the help of all flags, or of the class that ``--model.net.help CLASS`` names."""
        text = re.sub(
            r"known\s+subclasses:[^)]{2000,}",
            "any import path of such a class",
            super().format_help(*args),
        )
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
    if found := re.search(r"Unable to load config '(.*?)'", message):
        hint = f"; did you mean --net {found[1]}?" if "model" in key else ""
        return f"no file of settings: {found[1]}{hint}"
    if found := re.search(r"unknown argument (\S+)", text):
        known = re.findall(r"(?<= )--[\w.]+", flags)
        for place, made in (("model.net", networks.MLP), ("model.optimizer", torch.optim.AdamW)):
            known += [f"--{place}.{name}" for name in inspect.signature(made).parameters]
        known += [f"--data.{name}" for name in OF_EVERY_SOURCE]
        if found[1] in known:
            return f"{found[1]} is not taken by the class that was chosen; see --help"
        return text + (closest(found[1], known) if found[1].startswith("--") else "; see --help")
    if found := re.search(r"Option '(.*?)' is not accepted", message):
        classes: list[Any] = [
            locate(path) for path in re.findall(r"class_path[ =]'([\w.]+)'", message)
        ]
        makers = [base.__init__ for each in classes for base in each.__mro__]
        names = {name for make in makers for name in inspect.signature(make).parameters}
        hint = closest(found[1], sorted(names), f"{key}.")
        if classes and "did you mean" not in hint:
            hint = f": {classes[0].__name__} takes no {found[1]}"
        return f"unknown argument {key}.{found[1]}{hint}"
    if found := re.search(r"unknown class (\w+)", text):
        own = flags.partition(f"\n  {key} ")[2].partition("\n  --")[0]
        return text + closest(found[1], re.findall(r"\.(\w+)[,)]", own))
    return text


class FitCLI(LightningCLI):
    """LightningCLI's parser of the model, the data and the Trainer; it makes the first two."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(
            DigitClassifier,
            DigitDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=42,
            trainer_defaults={"max_epochs": 10, "enable_model_summary": False},
            parser_class=Parser,
            parser_kwargs=_parser_settings("fit"),
            args=list(words),
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the other options, and the defaults."""
        for name in ("name", "ckpt_path", "teacher", "init_from", "freeze", "seeds"):
            number = "+" if name in ("teacher", "freeze", "seeds") else None
            parser.add_argument(f"--{name}", type=str | None, nargs=number, help=IN_TABLE)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        best = {
            "monitor": "val/acc",
            "mode": "max",
            "filename": "best",
            "enable_version_counter": False,
        }
        parser.set_defaults({f"checkpoint.{name}": value for name, value in best.items()})
        parser.set_defaults({"model.net": {"class_path": DEFAULT_NET}})
        parser.set_defaults({"data": {"class_path": DEFAULT_DATA}})

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and check that the settings can be written to ``config.yaml`` and read back."""
        self.config = parse_chosen(parser, read_configs(args))
        config = self.config.clone()
        for name in OF_ONE_COMMAND:
            config[name] = None
        if "StochasticWeightAveraging" in str(config.trainer.callbacks):
            raise InputError(LOST_AVERAGE)
        with warnings.catch_warnings(action="ignore"):  # the same, in several lines
            self.text = parser.dump(config, skip_none=False)
        if lost := re.search(r".*Unable to serialize.*", self.text):
            raise InputError(
                "this setting cannot be written to config.yaml and read back: " + lost[0].strip()
            )

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Leave the Trainer to ``fit``."""


@dataclass(frozen=True)
class Recipe:
    """What flags or a configuration file say, as ``mnist_lightning.fit`` takes it."""

    config: str  # the content of config.yaml
    data: DigitDataModule
    seed: int
    arguments: dict[str, Any]  # the other arguments of fit: name, resume, teacher, the Trainer's
    cli: FitCLI = field(repr=False)

    def model(self) -> DigitClassifier:
        """Return a new classifier, with weights of torch's random numbers."""
        settings = Namespace(model=self.cli.config.model)  # type: ignore[no-untyped-call]
        made: DigitClassifier = self.cli.parser.instantiate_classes(settings).model
        return made

    def for_study(self) -> dict[str, Any]:
        """Return the arguments of ``fit`` that the runs of a study share, but for the seed."""
        shared = {"model": self.model, "data": self.data, "config": self.config}
        for name, value in self.arguments.items():
            if name not in ("name", "resume"):
                shared[name] = value
        return shared

    def fit(self, callbacks: Sequence[Callback] = (), **arguments: Any) -> Run:
        """Train.

        Args:
            callbacks: Lightning callbacks, besides those of the recipe.
            **arguments: Arguments of ``mnist_lightning.fit`` that replace the recipe's.
        """
        given = self.arguments | {"seed": self.seed, "config": self.config} | arguments
        given["callbacks"] = [*callbacks, *given["callbacks"]]
        return fit(self.model, self.data, **given)


def read(words: Sequence[str], resume: Path | None = None) -> Recipe:
    """Return the recipe that flags describe.

    Args:
        words: Long flags of ``fit``, such as ``["--trainer.max_epochs", "3"]``.
        resume: The ``last.ckpt`` of a run to continue, whose settings come before the flags.

    Raises:
        InputError: If a flag is invalid, or changes a setting that a resumed run keeps.
    """
    with isolate_rng():
        cli = FitCLI([*_own_flags(resume), *words])
        seed = cli.config_init.seed_everything
        if isinstance(seed, bool):
            seed = torch.initial_seed() % 2**32
        if resume is not None:
            _refuse_changes(FitCLI(_own_flags(resume)).text, cli.text, resume)
    made = cli.config_init
    arguments = _trainer_arguments(made.trainer)
    arguments["callbacks"] = as_list(arguments.get("callbacks"))
    if arguments.get("enable_checkpointing") is not False and not arguments.get("fast_dev_run"):
        arguments["callbacks"].append(made.checkpoint)
    arguments |= {"name": made.name, "teacher": made.teacher, "freeze": made.freeze}
    arguments |= {"resume": resume, "init_from": made.init_from}
    if resume is not None and not any(word.startswith("--init_from") for word in words):
        arguments["init_from"] = None  # its weights have been trained since
    return Recipe(cli.text, cli.datamodule, seed, arguments, cli)


def _own_flags(resume: Path | None) -> list[str]:
    """Return the flags for the settings of the run that a checkpoint is part of."""
    return [] if resume is None else ["--config", str(resume.parent.parent / "config.yaml")]


def _refuse_changes(earlier: str, now: str, resume: Path) -> None:
    changed = difference(earlier, now, re.compile(rf"trainer\.({FREE.pattern})"))
    if changed:
        raise InputError(f"a resumed run keeps its settings: {resume.parent.parent} has {changed}")


def _trainer_arguments(settings: Namespace) -> dict[str, Any]:
    """Return the Trainer's arguments that were given."""
    usual = inspect.signature(Trainer).parameters
    return {
        name: value
        for name, value in vars(settings).items()
        # check_val_every_n_epoch null means something else than its default, 1.
        if value is not None or usual[name].default is not None
    }


def parse_chosen(parser: Parser, words: Sequence[str | dict[str, Any]]) -> Namespace:
    """Parse twice, so that a chosen class has its own defaults and what was written for it alone.

    jsonargparse would also keep the arguments of the default class, or of a file's class, where
    the names are the same.

    Args:
        parser: The parser.
        words: What ``read_configs`` returned.
    """
    first = parser.parse_args(
        [word for word in as_flags(words) if not word.startswith("--print_config")]
    )
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
    return [
        f"--config={yaml.safe_dump(word)}" if isinstance(word, dict) else word for word in words
    ]


def written_for(
    chosen: Mapping[str, str], settings: Mapping[str, Any], place: str = ""
) -> dict[str, Any]:
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
        named = given.get("class_path", chosen.get(inner))
        if inner in chosen and not is_class(named, chosen[inner]):
            if inner != "data":
                continue
            arguments = given.get("init_args") or {}
            shared = {name: arguments[name] for name in arguments if name in OF_EVERY_SOURCE}
            value = {"init_args": shared}
        kept[key] = written_for(chosen, value, f"{inner}.") if isinstance(value, dict) else value
    return kept


def is_class(name: str | None, path: str) -> bool:
    """Return whether a name, such as ``CNN`` or an import path, means the class at ``path``."""
    return name is not None and (f".{path}".endswith(f".{name}") or locate(name) is locate(path))


def read_data(
    verb: str, words: Sequence[str], own: Mapping[str, Any] | None = None, has_trainer: bool = False
) -> tuple[DigitDataModule, dict[str, Any]]:
    """Return the data that flags describe, and the Trainer's arguments.

    Args:
        verb: The verb that takes the flags.
        words: Its long flags: the data's, and the Trainer's if it has one.
        own: The settings of the run that it is for: the defaults of the data's flags.
        has_trainer: Whether the verb takes the Trainer's flags.

    Raises:
        InputError: If a flag is invalid.
    """
    parser = Parser(**_parser_settings(verb), print_config=None)
    parser.add_lightning_class_args(DigitDataModule, "data", subclass_mode=True)
    parser.add_argument("--config", action="config", help=IN_TABLE)
    if has_trainer:
        parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({"data": {"class_path": DEFAULT_DATA}})
    kept: list[str | dict[str, Any]] = []
    for word in (dict(own or {}), *read_configs(words)):
        if isinstance(word, dict):
            word = _data_alone(word, is_augmented=verb == "describe")  # the others do not train
        kept.append(word)
    made = parser.instantiate_classes(parse_chosen(parser, kept))
    return made.data, _trainer_arguments(made.trainer) if has_trainer else {}


def _data_alone(settings: Mapping[str, Any], is_augmented: bool) -> dict[str, Any]:
    """Return the section of the data, with or without the augmentation."""
    data = copy.deepcopy(settings.get("data"))
    if isinstance(data, dict) and not is_augmented:
        for section in (data, data.get("init_args")):
            if isinstance(section, dict):
                section.pop("augmentation", None)
    return {"data": data} if data else {}


def refuse(words: Sequence[str], names: Iterable[str], why: str) -> None:
    """Refuse flags that a study sets itself. What a ``--config`` file says, it may overrule.

    Args:
        words: Long flags of ``fit``.
        names: The long names to refuse, without dashes.
        why: What to do.

    Raises:
        InputError: If one of them is among the flags.
    """
    for word in words:
        name = word.partition("=")[0].replace(".init_args", "").removeprefix("--")
        if word.startswith("--") and name in names:
            raise InputError(f"{word} would be overruled: {why}")
