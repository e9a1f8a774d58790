"""The command line: quick answers, then the verbs; an error of the user's is one line."""

import argparse
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from mnist_lightning import signals
from mnist_lightning.errors import InputError, condense, printable
from mnist_lightning.studies.compare import compare, compare_table, write_comparison
from mnist_lightning.training.runs import COLUMNS, LOG_DIR, runs, runs_table
from mnist_lightning.usage import PROGRAM, answer, expand

DEBUG_SWITCH = "MNIST_LIGHTNING_DEBUG"


def parse(parser: argparse.ArgumentParser, args: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments; an unknown one is an InputError."""
    known, rest = parser.parse_known_intermixed_args(args)
    if rest:
        raise InputError(f"unknown argument {rest[0]}; see --help")
    return known


def list_runs(args: Sequence[str]) -> str:
    """Return what the verb ``runs`` prints; it needs no torch."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--sort", choices=COLUMNS, default="when")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--log_dir", default=LOG_DIR)
    known = parse(parser, args)
    found = runs(known.log_dir, known.sort)
    if known.json:
        return json.dumps(found, indent=2)
    return runs_table(found) if found else f"No runs in {known.log_dir}: train one first, {PROGRAM} fit"


def compare_runs(args: Sequence[str]) -> str:
    """Return what the verb ``compare`` prints; only a contrast of two runs or groups needs torch."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("runs", nargs="*", default=[LOG_DIR])
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--output", default=f"{LOG_DIR}/compare")
    known = parse(parser, args)
    groups = compare(known.runs)
    runs = [run for group in groups for run in group["runs"]]
    sides = [group["runs"] for group in groups] if len(groups) == 2 else [[run] for run in runs]
    found, sentence = None, ""
    if len(sides) == 2:
        from mnist_lightning.studies.contrast import contrast  # here, since torch takes seconds to import
        from mnist_lightning.training.run import load_run

        try:
            one, other = ([load_run(run) for run in side] for side in sides)
            found = contrast(one, other, "test" if known.split == "test" else "validation")
            sentence = f"\n{found.sentence}\n"
        except InputError as error:  # the table is still right
            sentence = f"\nNot compared image by image: {error}\n"
    page = write_comparison(Path(known.output), groups, found)
    return f"{compare_table(groups)}\n{sentence}\nPage: {page}"


QUICK = {"runs": list_runs, "compare": compare_runs}  # verbs without torch


def complain(message: str, error: BaseException) -> None:
    """Print on stderr what went wrong in one line, and the notes on it."""
    for line in (f"{PROGRAM}: {message}", *getattr(error, "__notes__", ())):
        print(printable(line), file=sys.stderr)


def can_be_fixed(error: BaseException) -> bool:
    """Return whether the user can fix an error: one of ours, or a setting that Lightning itself refuses."""
    if isinstance(error, (InputError, argparse.ArgumentError, OSError)):
        return True  # OSError: a disk that is full, a folder that may not be written
    source = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals.get("__name__", "")
    refused = isinstance(error, (ValueError, RuntimeError, ImportError))
    return source.startswith("lightning.") and (refused or type(error).__name__ == "MisconfigurationException")


def main(args: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    It is 0; 1 if a picture gave no digit or a check failed; 2 if what the user gave cannot be used; or 128 and the
    number of the signal that stopped it.

    Args:
        args: The arguments: a verb and its options.
    """
    signals.listen()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a letter: its code is printed then
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if text := answer(args) or (QUICK[args[0]](args[1:]) if args[0] in QUICK else ""):
            print(text, flush=True)
            return 0
        long = expand(args[1:])
        from mnist_lightning.verbs import run  # here, since torch and Lightning take seconds to import

        return run(args[0], long)
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit raises it again
        return 1
    except BaseException as error:
        if signals.received:  # the error may be another one: an interrupted import raises what it likes
            number = signals.received[0]
            ranks = filter(None, map(os.environ.get, ("RANK", "LOCAL_RANK", "SLURM_PROCID")))
            if next(ranks, "0") == "0":  # one process says it for all
                complain(f"stopped by {signal.Signals(number).name}", error)
            return 128 + number
        if os.environ.get(DEBUG_SWITCH) or not can_be_fixed(error):
            raise
        line = condense(str(error))
        if isinstance(error, OSError) and error.strerror:
            line = f"{os.fsdecode(error.filename or 'writing failed')}: {error.strerror}"
        complain(f"error: {line}", error)
        return getattr(error, "exit_code", 2)
