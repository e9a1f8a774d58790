"""What a start imports, and in which direction the package's imports point."""

import ast
import os
import pty
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = [  # each imports only from its own layer and those after it
    {"cli", "__main__"},
    {"studies", "serve"},
    {"recipe"},
    {"training"},
    {"report", "pictures", "export"},
    {"classifier"},
    {"data", "networks"},
    {"inference", "checkpoints"},
    {"schedules", "settings", "files", "errors", "terminal"},
]
SOME_VERBS = {"cv2", "polars", "sklearn", "jinja2", "tensorboard", "mnist_lightning.report.figures"}
LIFTED = """
import sys, mnist_lightning
print(*sys.modules)
import mnist_lightning.report.pages, mnist_lightning.report.run_report
import mnist_lightning.report.describe
import mnist_lightning.pictures.read, mnist_lightning.pictures.digits
print(*sys.modules)
import mnist_lightning.networks
print(*sys.modules)
"""
QUICK = """
import contextlib, sys
from mnist_lightning import __main__
help = "", "--help", "-V", "fit --help", "doctor --help", "crossval --help-all"
for line in (*help, "runs", "trian", "fit --epoch 3", "fit --mdel.x 1"):
    sys.argv = ["mnist_lightning", *line.split()]
    with contextlib.redirect_stdout(sys.stderr):
        __main__.main()
print(*sys.modules)
"""
VERBS = """
import contextlib, sys
from lightning.pytorch.cli import LightningCLI
print(*sys.modules)
from mnist_lightning.cli.main import main
fit = ["fit", "--data", "UCIDigits", "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1"]
for args in (["fit", "--help-all"], ["fit", "--trainer.nonsense", "1"], fit):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
        main(args)
    print(*sys.modules)
"""


def modules_after_each_step(program: str) -> list[set[str]]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_what_can_be_lifted_out_imports_no_lightning() -> None:
    package, report_and_pictures, models = modules_after_each_step(LIFTED)
    assert package & {"torch", "lightning", "numpy", "matplotlib"} == set()
    assert report_and_pictures & {"torch", "lightning"} == set()
    assert models & {"torch", "lightning"} == {"torch"}


@pytest.mark.usefixtures("folder")
def test_quick_answers_import_neither_torch_nor_numpy() -> None:
    (modules,) = modules_after_each_step(QUICK)
    assert "mnist_lightning.training.runs" in modules
    assert modules & {"torch", "lightning", "jsonargparse", "numpy", "matplotlib"} == set()


def test_a_terminal_shows_at_once_what_is_waited_for(first: Path) -> None:
    """On stderr, and gone when it is over; the output has nothing of it."""
    screen, terminal = pty.openpty()
    start = [sys.executable, "-m", "mnist_lightning", "validate"]
    done = subprocess.run(start, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=300)
    os.close(terminal)
    shown = os.read(screen, 10_000).decode()
    os.close(screen)
    text = "loading torch ..."
    assert shown.startswith(f"{text}\r{' ' * len(text)}\r")
    assert done.returncode == 0, shown
    assert (done.stdout[:11], "\r" in done.stdout, "loading" in done.stdout) == (
        "Checkpoint:",
        False,
        False,
    )


@pytest.mark.usefixtures("folder")
def test_a_verb_imports_only_what_it_needs() -> None:
    lightning, *answers, fit = modules_after_each_step(VERBS)
    for modules in answers:  # help and an error
        assert (modules - lightning) & (
            SOME_VERBS | {"matplotlib.pyplot", "mnist_lightning.cli.doctor"}
        ) == set()
    assert (fit - lightning) & SOME_VERBS == {"sklearn"}  # it holds the UCI digits


def test_imports_point_one_way_without_a_circle() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in ROOT.glob("mnist_lightning/**/*.py")
    }
    del files["mnist_lightning.__init__"]  # its imports are for type checkers
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):  # the module, and what may be modules in it
                found[name] |= {
                    str(node.module),
                    *(f"{node.module}.{alias.name}" for alias in node.names),
                } & set(files)
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & set(files)
    layer = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    for name, targets in found.items():
        for target in targets:
            assert layer[name.split(".")[1]] <= layer[target.split(".")[1]], (
                f"{name} imports {target}"
            )
    list(TopologicalSorter(found).static_order())  # it raises CycleError
    assert "mnist_lightning.training.fit" in found["mnist_lightning.studies.train"]
    # A plain fit does not pass through a study.
    assert [name for name in found["mnist_lightning.recipe"] if ".studies" in name] == []
