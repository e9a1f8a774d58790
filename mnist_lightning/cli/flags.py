"""The table of all flags, ``flags.toml``, and what is made of it: help, parsers and early errors.

It is read before torch is imported, which takes seconds.
"""

import argparse
import platform
import re
import textwrap
import tomllib
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from mnist_lightning import __version__
from mnist_lightning.errors import PROGRAM, InputError, closest, near

TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("flags.toml").read_text("utf-8"))
# What is meant, and the words that people try for it.
SYNONYMS: dict[str, list[str]] = TABLE.pop("synonyms")
VERBS: dict[str, str] = {verb: entry["about"] for verb, entry in TABLE.items()}
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
    if len(words) > 1 and words[0] == "help":
        words = [words[1], "--help"]
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help", "--help-all", "help"):
        return overview()
    if verb in ("-V", "--version"):
        python, torch, lightning = platform.python_version(), version("torch"), version("lightning")
        return (
            f"mnist_lightning {__version__} (Python {python}, torch {torch}, lightning {lightning})"
        )
    if verb not in VERBS:
        hint = closest(meant_by(verb, VERBS) or verb, [*VERBS, "help"])
        raise InputError(f"the first argument must be one of {', '.join(VERBS)}, got {verb}{hint}")
    sections = sections_of(verb)
    if {"-h", "--help"} & set(words) or ("sections" not in TABLE[verb] and "--help-all" in words):
        return help_of(verb)
    rows = flags_of(verb)
    earlier = [row["was"] for row in rows.values() if "was" in row]
    names = [*rows, *sections, *earlier, "help_all", "default_root_dir"]
    for word, following in pairwise([*words, ""]):
        found = re.match(r"--(\w[^.=+]*)([^=+]*)=?(.*)", word)
        if found is None:
            continue
        name, rest, value = found.groups()
        name = name.replace("-", "_")
        meant = meant_by(name, names)
        # A section, such as --model, takes a file of settings; --model CNN means another flag.
        is_section = name in sections and not rest and not Path(value or following).is_file()
        if name in names and not (meant and is_section):
            continue
        meant = meant or near(name, names)
        # A flag that is like none of these may be an argument of a class: the parser knows them.
        if meant or "model" not in sections:
            hint = f"; did you mean --{meant}{rest}?" if meant else "; see --help"
            raise InputError(f"unknown argument --{name}{rest}{hint}")
    return None


def meant_by(word: str, names: Collection[str]) -> str | None:
    """Return what a word that people try is called here; None if no name is known for it."""
    for meant, tried in SYNONYMS.items():
        if word.lower() in tried and re.split(r"[. +]", meant)[0] in names:
            return meant
    return None


def sections_of(verb: str) -> list[str]:
    """Return the sections of Lightning's parser that a verb takes, such as ``trainer``."""
    entry = TABLE[verb]
    owner = TABLE[entry["takes"]] if "takes" in entry else entry
    return [*owner.get("sections", [])]


def expand(verb: str, words: Sequence[str]) -> list[str]:
    """Return a verb's words with long flags, and with import paths for ambiguous names.

    The help of a network or a data set is the one of the class given, or of the default.

    >>> expand("fit", ["--batch-size=5", "--net", "MLP", "--lr", "1"])
    ['--data.batch_size=5', '--model.net', 'mnist_lightning.MLP', '--model.optimizer.lr', '1']
    >>> expand("fit", ["--net", "CNN", "--net.help"])
    ['--model.net.help', 'CNN']
    """
    long = {"help_all": "help"}
    for name, row in flags_of(verb).items():
        long[name] = long[row.get("was", name)] = row.get("long", name)

    def longer(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")  # some programs have dashes there
        return f"--{long.get(name, name)}"

    words = [re.sub(r"^--([\w-]+)", longer, word) for word in words]
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
