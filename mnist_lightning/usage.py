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
SHORT: dict[str, str] = dict(re.findall(r"--(\w+)\s+for\s+--([\w.]+)", HELP_OF["fit"]))  # short forms of flags
CLASSES = {  # what a flag can name in one word; the default first
    "model.net": ("MLP", "CNN"),
    "model.lr_scheduler": ("OneCycle", "Cosine", "Plateau", "ReduceLROnPlateau"),
    "data": ("MNIST", "FashionMNIST", "KMNIST", "UCIDigits", "Kaggle"),
    "data.augmentation": ("Augmentation",),
}
PATHS = {"ReduceLROnPlateau": "lightning.pytorch.cli.ReduceLROnPlateau"}
SYNONYMS = {"train": "fit", "evaluate": "test", "learning_rate": "lr", "max_epochs": "epochs", "resume": "ckpt_path"}


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
    if {"-h", "--help"} & set(args) or (verb == "runs" and "--help-all" in args):
        return HELP_OF[verb]
    names = set(re.findall(r"--([\w-]+)", HELP_OF[verb]))
    if verb != "predict" and args[1:] and args[1][:1] != "-":
        hint = closest(args[1], names, "--") or f"; {PROGRAM} {verb} --help shows the options"
        raise InputError(f"unknown argument {args[1]}{hint}")
    for word in args:
        if (found := re.match(r"--(\w[^.=+]*)([^=+]*)", word)) and found[1] not in names:
            hint = closest(found[1], names, "--", found[2]) or f"; {PROGRAM} {verb} --help-all lists all flags"
            raise InputError(f"unknown flag {found[0]}{hint}")
    return None


def closest(word: str, names: Iterable[str], prefix: str = "", rest: str = "") -> str:
    """Return a question for the name that a misspelled word may mean; empty if none is near.

    >>> closest("epoch", ["epochs", "lr"], "--")
    '; did you mean --epochs?'
    """
    known = {name: name for name in names}
    known |= {name: other for name, other in SYNONYMS.items() if other in known}
    found = get_close_matches(word, known, n=1)
    return f"; did you mean {prefix}{known[found[0]]}{rest}?" if found else ""


def expand(args: Sequence[str]) -> list[str]:
    """Return a verb's arguments with long flags, and with import paths for the classes in ``CLASSES``.

    Other packages have classes of the same names, which the parser would find ambiguous. The help of a class is the
    default one's if none is given, and words before the first flag are pictures.

    >>> expand(["--epochs=5", "--net", "MLP", "--data.help"])
    ['--trainer.max_epochs=5', '--model.net', 'mnist_lightning.MLP', '--data.help', 'mnist_lightning.MNIST']
    >>> expand(["a.png", "--lr", "1"])
    ['--images', 'a.png', '--model.optimizer.lr', '1']
    """
    words = ["--images", *args] if args and args[0][:1] != "-" else [*args]
    if words.count("--images") > 1:
        raise InputError("give pictures before the flags or with --images, not both")
    long = {**SHORT, "help-all": "help"}
    words = [re.sub(r"^--([\w-]+)", lambda found: f"--{long.get(found[1], found[1])}", word) for word in words]
    for at, word in enumerate(words):
        asked = word[2:].removesuffix(".help")
        if word == f"--{asked}.help" and asked in CLASSES:  # what follows has no effect
            given = dict(pairwise(words[:at])).get(f"--{asked}", CLASSES[asked][0])
            named = [name for name in words[at + 1 : at + 2] if name[:1] != "-"]
            words = [*words[: at + 1], *(named or [given])]
            break
    for at, word in enumerate(words):
        flag, _, value = word.rpartition("=") if word[:1] == "-" else (words[at - 1], "", word)
        if value in CLASSES.get(flag[2:].removesuffix(".help"), ()):
            words[at] = word.removesuffix(value) + PATHS.get(value, f"mnist_lightning.{value}")
    return words
