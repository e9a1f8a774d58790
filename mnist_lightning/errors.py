"""Errors that the user can fix, each in one line."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

IS_SCRIPT = Path(sys.argv[0]).stem == "mnist-lightning"
PROGRAM = "mnist-lightning" if IS_SCRIPT else "python -m mnist_lightning"


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what was wrong, the value received, and what to do. The command line
    prints it on stderr and exits with 2. In Python it is an ordinary ``ValueError``.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@contextmanager
def needs(extra: str, what: str = "this") -> Iterator[None]:
    """Turn a failed import into one line that says which extra to install."""
    try:
        yield
    except ImportError as error:
        missing = error.name or error
        raise InputError(f"{what} needs {missing}: pip install -e '.[{extra}]'") from error


def printable(text: str) -> str:
    r"""Escape unprintable characters: a terminal would execute those in a file name.

    >>> printable("a\nb\x1b[2J\udcff ä")
    'a\\nb\\x1b[2J\\udcff ä'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def near(word: str, names: Iterable[str]) -> str | None:
    """Return the name that a word may mean: a whole one, or what follows the last dot of one.

    Capital letters do not count, and a dash is an underscore.

    >>> near("Batch-Size", ["data.batch_size", "data.seed"])
    'data.batch_size'
    """
    whole, last = {}, {}
    for name in names:
        plain = _plain(name)
        whole[plain] = last[plain.rpartition(".")[2]] = name
    for cutoff in (1, 0.6):  # the same first, then similar ones
        for known in (whole, last):
            if found := get_close_matches(_plain(word), known, 1, cutoff):
                return known[found[0]]
    return None


def _plain(word: str) -> str:
    return word.lower().lstrip("-").replace("-", "_")


def closest(word: str, names: Iterable[str], prefix: str = "", rest: str = "") -> str:
    """Return how to go on after an unknown word: with the name that it may mean, if one is near.

    >>> closest("Epoch", ["epochs", "lr"], "--")
    '; did you mean --epochs?'
    """
    found = near(word, names)
    return f"; did you mean {prefix}{found}{rest}?" if found else "; see --help"


# Replacements for jsonargparse's wording, in each line.
_REWORDINGS = (
    (r"Type typing\.Callable.* expects a function or a callable class: ", ""),
    (r'Parser key "[\w.]+":', ""),
    (r"unrecognized arguments: ([^\s=+]+).*", r"unknown argument \1"),
    (r"\.? ?Got value: (Namespace|NestedArg)\(.*", ""),
    (r"\.? Got value: ", ", got "),
    (r"Expected a dot import path string: (.*)", r"unknown class \1"),
    (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
    (r"typing\.Literal", "one of "),
    (r"Expected an? ", "expected "),
    (r"expected Sequence, got ([\w., ]+)$", r"expected a list, such as [\1], got \1"),
)
# Lines to drop: about jsonargparse's internals, and about types that the user did not mean.
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|expected path but|expected NoneType|"
    r"Problem with given class_path \S+:$"
)


def condense(message: str) -> str:
    r"""Shorten a message of jsonargparse to one line: the flag, what it expects, what it got.

    >>> condense('Parser key "data":\n Parser key "n":\n Expected a <class \'int\'>. Got value: x')
    '--data.n: expected int, got x'
    """
    lines: dict[str, None] = {}  # an ordered set
    for line in message.splitlines():
        line = line.strip().removeprefix("- ")
        for pattern, replacement in _REWORDINGS:
            line = re.sub(pattern, replacement, line).strip()
        if line and not _NOISE.match(line):
            lines[line] = None
    text = "; ".join(lines)
    given = re.search(r"Given value: (?:NestedArg.*val=')?([^\s']+)(?:'\))?$", message)
    if given and not re.search(r"\b(got|unknown class) ", text):
        text += f", got {given[1]}"
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    return f"--{'.'.join(keys)}: {text}" if keys else text
