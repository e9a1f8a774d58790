"""What help.txt says about the verbs and their flags; known before torch is imported, which takes seconds."""

import platform
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from mnist_lightning import __version__
from mnist_lightning.errors import InputError

PROGRAM = "mnist-lightning" if Path(sys.argv[0]).stem == "mnist-lightning" else "python -m mnist_lightning"
HELP = (Path(__file__).parent / "help.txt").read_text(encoding="utf-8").replace("python -m mnist_lightning", PROGRAM)
OVERVIEW, *_SECTIONS = re.split(r"\n\n(?=usage: )", HELP.rstrip())
VERBS: dict[str, str] = dict(re.findall(r"^  (\w+) +(.+)$", OVERVIEW, re.M))
HELP_OF = dict(zip(VERBS, _SECTIONS, strict=True))
SHORT: dict[str, str] = dict(re.findall(r"--(\w+)\s+for\s+--([\w.]+\w)", HELP_OF["fit"]))  # short forms of flags
COMPLETE = ("runs", "compare", "serve", "crossval", "tune", "import")  # their help lists all of their own flags
FIT_FLAGS = ("crossval", "tune", "import")  # these verbs take the flags of fit too
DEFAULTS = {"model.net": "mnist_lightning.MLP", "data": "mnist_lightning.MNIST"}
# Names that torch and torchvision use too, so that the parser would find them ambiguous.
PATHS = {"MLP": "mnist_lightning.MLP", "ReduceLROnPlateau": "lightning.pytorch.cli.ReduceLROnPlateau"}
SYNONYMS = {"train": "fit", "evaluate": "test", "learning_rate": "lr", "resume": "ckpt_path"}


def about(verb: str) -> dict[str, str]:
    """Return what each flag in the table of a verb's help does."""
    return {line[4:].split()[0]: line[40:] for line in HELP_OF[verb].splitlines() if line.startswith("  --")}


def answer(args: Sequence[str]) -> str | None:
    """Return the help or the versions that the arguments ask for; None if they ask for work.

    Raises:
        InputError: If a verb or a flag does not exist, as far as that is known without the classes of the settings.
    """
    verb = args[0] if args else "--help"
    if verb in ("-h", "--help", "--help-all", "help"):
        return OVERVIEW
    if verb in ("-V", "--version"):
        python, torch, lightning = platform.python_version(), version("torch"), version("lightning")
        return f"mnist_lightning {__version__} (Python {python}, torch {torch}, lightning {lightning})"
    if verb not in VERBS:
        raise InputError(f"the first argument must be one of {', '.join(VERBS)}, got {verb}{closest(verb, VERBS)}")
    if {"-h", "--help"} & set(args) or (verb in COMPLETE and "--help-all" in args):
        return HELP_OF[verb]
    flags_of = HELP_OF[verb] + (HELP_OF["fit"] if verb in FIT_FLAGS else "")
    names = set(re.findall(r"--([\w-]+)", flags_of))
    for word in args:
        if (found := re.match(r"--(\w[^.=+]*)([^=+]*)", word)) and found[1] not in names:
            raise InputError(f"unknown argument {found[0]}{closest(found[1], names, '--', found[2])}")
    return None


def closest(word: str, names: Iterable[str], prefix: str = "", rest: str = "") -> str:
    """Return how to go on after an unknown word: with the name that it may mean, if one is near.

    >>> closest("epoch", ["epochs", "lr"], "--")
    '; did you mean --epochs?'
    """
    found = get_close_matches(SYNONYMS.get(word, word), names, n=1)
    return f"; did you mean {prefix}{found[0]}{rest}?" if found else "; see --help"


def expand(args: Sequence[str]) -> list[str]:
    """Return a verb's arguments with long flags, and with import paths for ambiguous names.

    The help of a network or a data set is the one of the class given, or of the default.

    >>> expand(["--epochs=5", "--net", "MLP", "--lr", "1"])
    ['--trainer.max_epochs=5', '--model.net', 'mnist_lightning.MLP', '--model.optimizer.lr', '1']
    >>> expand(["--net", "CNN", "--net.help"])
    ['--model.net.help', 'CNN']
    """
    long = {**SHORT, "help-all": "help"}
    words = [re.sub(r"^--([\w-]+)", lambda found: f"--{long.get(found[1], found[1])}", word) for word in args]
    after = dict(pairwise([*words, "-"]))
    for flag, default in DEFAULTS.items():
        if (asked := f"--{flag}.help") in words:
            given = after.get(f"--{flag}", default)
            words = [asked, given if after[asked][:1] == "-" else after[asked]]  # the other words have no effect
    for at, word in enumerate(words):
        flag, _, name = word.rpartition("=") if word[:1] == "-" else (words[at - 1], "", word)
        if name in PATHS and flag.startswith("--model."):
            words[at] = word.removesuffix(name) + PATHS[name]
    return words
