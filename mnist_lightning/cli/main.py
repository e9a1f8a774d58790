"""The command line: quick answers, then the verbs; an error of the user's is one line."""

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from mnist_lightning.cli import signals
from mnist_lightning.cli.flags import answer, expand, help_of
from mnist_lightning.errors import PROGRAM, InputError, condense, printable
from mnist_lightning.terminal import waiting

DEBUG_SWITCH = "MNIST_LIGHTNING_DEBUG"
QUICK = ("runs", "compare")  # verbs without torch


def complain(message: str, error: BaseException) -> None:
    """Print on stderr what went wrong in one line, and the notes on it."""
    for line in (f"{PROGRAM}: {message}", *getattr(error, "__notes__", ())):
        print(printable(line), file=sys.stderr)


def can_be_fixed(error: BaseException) -> bool:
    """Return whether the user can fix an error: one of ours, or one of Lightning's own refusals."""
    if isinstance(error, (InputError, argparse.ArgumentError, OSError)):
        return True  # OSError: a disk that is full, a folder that may not be written
    if type(error).__name__ == "MisconfigurationException":
        refused = True
    else:
        refused = isinstance(error, (ValueError, RuntimeError, ImportError))
    *_, (raised_in, _) = traceback.walk_tb(error.__traceback__)
    return refused and str(raised_in.f_globals.get("__name__")).startswith("lightning.")


def answer_or_run(args: Sequence[str]) -> int:
    """Print a quick answer or run a verb, and return the exit code."""
    text = answer(args)
    if text is None:
        verb, words = args[0], expand(args[0], args[1:])
        if verb not in QUICK:
            if "--help" in words:  # asked for as --help-all
                print(help_of(verb), end="\n\n")
            with waiting("loading torch ..."):
                from mnist_lightning.cli.verbs import run  # here, since this takes seconds
            return run(verb, words)
        from mnist_lightning.cli import quick  # here, since the help does not need it

        text = quick.COMMANDS[verb](words)
    print(text, flush=True)
    return 0


def main(args: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    It is 0; 1 if a picture gave no digit or a check failed; 2 if what the user gave cannot be used;
    or 128 and the number of the signal that stopped it.

    Args:
        args: The arguments: a verb and its options.
    """
    signals.listen()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may lack a letter: its code is printed then.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return answer_or_run(args)
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        # Otherwise the flush at exit raises it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        if signals.received:
            # The error may be another one: an interrupted import raises what it likes.
            number = signals.received[0]
            names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
            ranks = [os.environ[name] for name in names if os.environ.get(name)]
            if not ranks or ranks[0] == "0":  # one process says it for all
                complain(f"stopped by {signal.Signals(number).name}", error)
            return 128 + number
        if os.environ.get(DEBUG_SWITCH) or not can_be_fixed(error):
            raise
        line = condense(str(error))
        if isinstance(error, OSError) and error.strerror:
            line = f"{os.fsdecode(error.filename or 'writing failed')}: {error.strerror}"
        complain(f"error: {line}", error)
        return getattr(error, "exit_code", 2)
