"""The verbs that need no torch: they answer at once."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mnist_lightning.cli.flags import parse
from mnist_lightning.errors import PROGRAM, InputError
from mnist_lightning.studies.compare import compare, compare_table, write_comparison
from mnist_lightning.terminal import waiting
from mnist_lightning.training.runs import annotate, delete, runs, runs_table


def list_runs(words: Sequence[str]) -> str:
    """Return what the verb ``runs`` prints; it needs no torch."""
    own, _ = parse("runs", words, "runs")
    has_change = own.tag or own.untag or own.note is not None
    if not own.runs and (has_change or own.delete):
        raise InputError("name the runs first: runs RUN ... --tag baseline")
    if own.runs and own.delete:
        return _delete(own.runs, own.yes)
    annotate(own.runs, own.tag or (), own.untag or (), own.note)
    found = runs(own.log_dir, own.sort, own.tagged)
    if own.runs:
        names = [Path(folder).name for folder in own.runs]
        found = [row for row in found if row["name"] in names]
    if own.json:
        return json.dumps(found, indent=2)
    if not found:
        return f"No runs in {own.log_dir}: train one first, {PROGRAM} fit"
    return runs_table(found)


def _delete(folders: Sequence[str], is_sure: bool) -> str:
    number = f"{len(folders)} {'run' if len(folders) == 1 else 'runs'}"
    if not is_sure:
        if not sys.stdin.isatty():
            raise InputError("--delete asks on a terminal; in a script add --yes")
        answer = input(f"Delete {number} with all files: {', '.join(folders)}? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            return "Nothing was deleted."
    delete(folders)
    return f"Deleted: {number}"


def compare_runs(words: Sequence[str]) -> str:
    """Return what the verb ``compare`` prints; only a contrast of two needs torch."""
    own, _ = parse("compare", words, "runs")
    groups = compare(own.runs or [own.log_dir])
    folders = [folder for group in groups for folder in group["runs"]]
    sides = [[folder] for folder in folders]
    if len(groups) == 2:
        sides = [group["runs"] for group in groups]
    found, sentence = None, ""
    if len(sides) == 2:
        with waiting("loading torch ..."):
            from mnist_lightning.studies.contrast import contrast  # here, since this takes seconds
            from mnist_lightning.training.run import load_run

        try:
            one, other = ([load_run(folder) for folder in side] for side in sides)
            found = contrast(one, other, own.split)
            sentence = f"\n{found.sentence}\n"
        except InputError as error:  # the table is still right
            sentence = f"\nNot compared image by image: {error}\n"
    page = write_comparison(Path(own.output or f"{own.log_dir}/compare"), groups, found)
    return f"{compare_table(groups)}\n{sentence}\nPage: {page}"


COMMANDS: dict[str, Callable[[Sequence[str]], str]] = {"runs": list_runs, "compare": compare_runs}
