"""The table of all flags, ``flags.toml``, and what is made of it: help, parsers and early errors.

It is read before torch is imported, which takes seconds.
"""

import argparse
import platform
import re
import textwrap
import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from mnist_lightning import __version__
from mnist_lightning.errors import PROGRAM, InputError, closest, near

TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("flags.toml").read_text("utf-8"))
VERBS: dict[str, str] = {verb: entry["about"] for verb, entry in TABLE.items()}
# What other programs call a verb or a flag.
SYNONYMS = {
    "train": "fit",
    "evaluate": "test",
    "eval": "test",
    "learning_rate": "lr",
    "resume": "ckpt_path",
    "checkpoint_path": "ckpt_path",
    "gpu": "device gpu",
    "cuda": "device gpu",
    "cpu": "device cpu",
    "gpus": "trainer.devices",
    "scheduler": "model.lr_scheduler",
    "validation_split": "data.val_fraction",
}
# Names that torch and torchvision use too, so that Lightning's parser would find them ambiguous.
PATHS = {
    "MLP": "mnist_lightning.MLP",
    "ReduceLROnPlateau": "lightning.pytorch.cli.ReduceLROnPlateau",
}
DEFAULT_CLASSES = {"model.net": "mnist_lightning.MLP", "data": "mnist_lightning.MNIST"}
ROOTS = ("--trainer.default_root_dir", "--default_root_dir")  # lightning_logs is below it


def flags_of(verb: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a verb's flags by their names, with those of ``fit`` if it takes these."""
    rows = {row["name"]: row for row in TABLE[verb]["flags"]}
    return flags_of(TABLE[verb]["takes"]) | rows if "takes" in TABLE[verb] else rows


def overview() -> str:
    """Return the help of the whole command line."""
    lines = [f"usage: {PROGRAM} VERB [options]", ""]
    lines += [f"  {verb:<9} {about}" for verb, about in VERBS.items()]
    lines += [
        "",
        f"{PROGRAM} VERB --help shows the options of a verb; --version shows the versions.",
    ]
    return "\n".join(lines)


def help_of(verb: str) -> str:
    """Return the help of a verb: one screen."""
    entry = TABLE[verb]
    lines = [f"usage: {PROGRAM} {verb} {entry['usage']}", "", entry["about"]]
    if entry["flags"]:
        lines += ["", "  example                     default   what it does"]
    for row in entry["flags"]:
        words = f"--{row['name']} {row.get('example', '')}"
        lines.append(f"  {words:<28}{row.get('default', ''):<10}{row['text']}")
    lines += ["", entry["notes"].replace("python -m mnist_lightning", PROGRAM)]
    if verb == "fit":
        short = [f"--{row['name']} for --{row['long']}" for row in entry["flags"] if "long" in row]
        lines += ["", *textwrap.wrap(f"Short forms: {', '.join(short)}.", 100)]
    return "\n".join(lines)


def answer(words: Sequence[str]) -> str | None:
    """Return the help or the versions that the words ask for; None if they ask for work.

    Args:
        words: The words of the command line: a verb and its flags.

    Raises:
        InputError: If a verb or a flag does not exist, as far as the table says.
    """
    verb = words[0] if words else "--help"
    if verb == "help" and len(words) > 1:  # help fit
        return answer([words[1], "--help"])
    if verb in ("-h", "--help", "--help-all", "help"):
        return overview()
    if verb in ("-V", "--version"):
        python, torch, lightning = platform.python_version(), version("torch"), version("lightning")
        return (
            f"mnist_lightning {__version__} (Python {python}, torch {torch}, lightning {lightning})"
        )
    if verb not in VERBS:
        hint = closest(SYNONYMS.get(verb, verb), VERBS)
        raise InputError(f"the first argument must be one of {', '.join(VERBS)}, got {verb}{hint}")
    sections = sections_of(verb)
    if {"-h", "--help"} & set(words) or ("sections" not in TABLE[verb] and "--help-all" in words):
        return help_of(verb)
    rows = flags_of(verb)
    earlier = [row["was"] for row in rows.values() if "was" in row]
    names = [*rows, *sections, *earlier, "help-all", "default_root_dir"]
    for word in words:
        found = re.match(r"--(\w[^.=+]*)([^=+]*)", word)
        if found and found[1] not in names:
            meant = SYNONYMS.get(found[1].lower().replace("-", "_"), "")
            if re.split("[ .]", meant)[0] not in names:
                meant = near(found[1], names)
            # A flag that is like none of these may be like one of Lightning's parser.
            if meant or not sections:
                hint = f"; did you mean --{meant}{found[2]}?" if meant else "; see --help"
                raise InputError(f"unknown argument {found[0]}{hint}")
    return None


def sections_of(verb: str) -> list[str]:
    """Return the sections of Lightning's parser that a verb takes, such as ``trainer``."""
    entry = TABLE[verb]
    owner = TABLE[entry["takes"]] if "takes" in entry else entry
    return [*owner.get("sections", [])]


def expand(verb: str, words: Sequence[str]) -> list[str]:
    """Return a verb's words with long flags, and with import paths for ambiguous names.

    The help of a network or a data set is the one of the class given, or of the default.

    >>> expand("fit", ["--epochs=5", "--net", "MLP", "--lr", "1"])
    ['--trainer.max_epochs=5', '--model.net', 'mnist_lightning.MLP', '--model.optimizer.lr', '1']
    >>> expand("fit", ["--net", "CNN", "--net.help"])
    ['--model.net.help', 'CNN']
    """
    long = {"help-all": "help"}
    for name, row in flags_of(verb).items():
        long[name] = long[row.get("was", name)] = row.get("long", name)
    words = [
        re.sub(r"^--([\w-]+)", lambda it: f"--{long.get(it[1], it[1])}", word) for word in words
    ]
    after = dict(pairwise([*words, "-"]))
    for flag, default in DEFAULT_CLASSES.items():
        if (asked := f"--{flag}.help") in words:
            given = after.get(f"--{flag}", default)
            words = [asked, given if after[asked][:1] == "-" else after[asked]]
    for at, word in enumerate(words):
        flag, _, name = word.rpartition("=") if word[:1] == "-" else (words[at - 1], "", word)
        if name in PATHS and flag.startswith("--model."):
            words[at] = word.removesuffix(name) + PATHS[name]
    return words


def boolean(word: str) -> bool:
    """Read ``true`` or ``false``.

    Raises:
        ValueError: If it is another word.
    """
    if word.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return word.lower() == "true"


def number(word: str) -> int | str:
    """Read a number; any other word stays a word."""
    return int(word) if word.lstrip("-").isdecimal() else word


TYPES: dict[str, Callable[[str], Any]] = {
    "text": str,
    "int": int,
    "number": number,
    "bool": boolean,
}


def _option(row: dict[str, Any]) -> dict[str, Any]:
    """Return what argparse needs for a row of the table."""
    kind = row["own"]
    if kind == "switch":
        return {"action": "store_true"}
    is_choice = isinstance(kind, list)
    option: dict[str, Any] = {"choices": kind} if is_choice else {"type": TYPES[kind]}
    if "default" in row:
        option["default"] = row["default"]  # argparse converts a text
    if row.get("many"):
        option["nargs"] = "+"
    return option


def parse(
    verb: str, words: Sequence[str], *positional: str
) -> tuple[argparse.Namespace, list[str]]:
    """Return a verb's own flags, and the other words, which are for Lightning's parser.

    Args:
        verb: The verb.
        words: The words after it, expanded.
        *positional: Names of arguments without a flag, each of which takes any number of words.

    Raises:
        InputError: If a value is invalid, or a word is left for a verb that has no other flags.
    """
    from mnist_lightning.training.runs import LOG_DIR  # here, since the help does not need it

    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {verb}", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    for name in positional:
        parser.add_argument(name, nargs="*")
    for name, row in flags_of(verb).items():
        if "own" in row:
            parser.add_argument(f"--{name}", **_option(row))
    parser.add_argument(*ROOTS, dest="root")
    read = parser.parse_known_intermixed_args if positional else parser.parse_known_args
    own, rest = read(words)
    if rest and not sections_of(verb):
        raise InputError(f"unknown argument {rest[0]}; see --help")
    given = getattr(own, "log_dir", None)
    own.log_dir = given or str(Path(own.root or "") / LOG_DIR)
    if "trainer" in sections_of(verb):
        if given:  # it replaces what a file says
            rest.append("--trainer.default_root_dir=null")
        elif own.root is not None:
            rest.append(f"--trainer.default_root_dir={own.root}")
    return own, rest
