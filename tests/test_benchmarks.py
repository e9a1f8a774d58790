"""The benchmarks and the tools run; their figures are not checked."""

import runpy
import sys
from itertools import groupby
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from conftest import ROOT
from numpy.typing import NDArray

from mnist_lightning.pictures.recognize import Digit, Reading

SCRIPTS = [path for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "measure"]
SCRIPTS = sorted([*SCRIPTS, ROOT / "tools/detector/train.py"])


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the scripts importable, as they are to one another."""
    for folder in ("benchmarks", "tools/detector"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


def run(monkeypatch: pytest.MonkeyPatch, script: Path, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *args])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_explains_itself(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, script, "--help")
    assert end.value.code == 0
    assert f"python {script.relative_to(ROOT).as_posix()}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_recipes_runs_the_debug_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        monkeypatch,
        ROOT / "benchmarks/recipes.py",
        str(ROOT / "configs/debug.yaml"),
        "--seeds",
        "1",
    )
    assert "| debug | " in capsys.readouterr().out


def test_rows_are_compared_by_their_medians(tmp_path: Path) -> None:
    import speed

    def runs(row: str, *seconds: float) -> list[dict[str, object]]:
        others = {"row": row, "test_accuracy": 0.9, "peak_mb": 600, "seconds": 11}
        return [{**others, "fit_seconds": each} for each in seconds]

    old = speed.ROWS["fit"]._replace(label="old")
    rows = {"fit": speed.ROWS["fit"], "fit-old": old, "torch-loop": speed.ROWS["torch-loop"]}
    summary = speed.summarise(
        runs("fit", 9, 3, 6) + runs("fit-old", 8, 8, 1) + runs("torch-loop", 2, 4, 4.5)
    )
    lines = [line.replace(" ", "") for line in speed.comparison(rows, summary).splitlines()]
    assert lines[0] == "||threads|fit,s(range)|/torchloop|testaccuracy|peakMB|wholecommand,s|"
    assert lines[2:5] == [
        "|`fit`,everythingon|1|6.0(3.0-9.0)|1.50|90.00%|600|11.0|",
        "|old|1|8.0(1.0-8.0)|2.00|90.00%|600|11.0|",
        "|plaintorchloop|all|4.0(2.0-4.5)|1.00|90.00%|600|11.0|",
    ]
    assert lines[-1] == "`fit`,everythingon:new/old=0.75"
    figure = speed.bars(rows, summary, "two cores")
    assert [bar.get_width() for bar in figure.axes[0].patches] == [8, 6, 4]
    figure.savefig(tmp_path / "speed.png")


def test_a_command_is_measured_and_its_failure_shown() -> None:
    import measure

    done = measure.run(
        [sys.executable, "-c", "held = bytearray(200_000_000); print('x' * 100_000, 'end')"]
    )
    assert done.output == "x" * 100_000 + " end\n"
    assert done.peak_mb > 200
    with pytest.raises(SystemExit, match=r"(?s)failed with exit code 3:.*reason"):
        measure.run(
            [sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"]
        )


def test_handwriting_is_drawn_by_seed_and_read_by_place() -> None:
    import handwriting
    import torch

    for name in handwriting.DRAWN:
        first, again, other = (handwriting.drawn(name, 2, seed) for seed in (0, 0, 1))
        assert [picture.dtype for picture in first.pictures] == [np.uint8] * 2
        assert all(map(np.array_equal, first.pictures, again.pictures))
        assert not any(map(np.array_equal, first.pictures, other.pictures))
    row = handwriting.drawn(handwriting.ROW, 2, 0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(net[1].bias[:1], 100)  # every digit is read as 0, more than surely
    assert handwriting.read(net, row).tolist() == [[0] * 5] * 2
    row.pictures[0][:, : row.pictures[0].shape[1] // 5] = 255  # the first digit is gone
    assert handwriting.read(net, row)[0, 0] == -1


def reading(text: str) -> Reading:
    """Return the reading whose text this is; all digits are of one number."""
    finds = []
    for place, digit in enumerate(text):
        if digit != "?":
            certain = text[place + 1 : place + 2] != "?"
            nothing = np.zeros((28, 28), np.uint8)
            chances = np.zeros(10, np.float32)
            box = (0, 0, 1, 1)
            finds.append(Digit(int(digit), 1.0, chances, box, nothing, certain, 1, 1))
    return Reading(finds)


def test_a_perfect_reader_reads_all_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import kinds

    truths = {}
    for kind in kinds.KINDS:
        (first,) = kinds.drawn(kind, 1, 7)
        assert first.picture.dtype == np.uint8
        assert bool(first.truth) == (kind not in ("plus signs", "brackets"))
        truths[first.picture.tobytes()] = first.truth

    def perfect(picture: NDArray[np.uint8], net: None) -> Reading:
        return reading(truths[picture.tobytes()])  # fails unless the seed gives the same picture

    monkeypatch.setattr(kinds, "recognize", perfect)
    monkeypatch.setattr(kinds, "load_run", MagicMock())
    options = ["--pictures", "1", "--seed", "7", "--save", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["kinds.py", "a run", *options])
    kinds.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:-1] == [f"| {kind} | 1 | 1 | 0 |  |" for kind in kinds.KINDS]
    assert lines[-1] == f"| **all** | {len(truths)} | {len(truths)} | 0 | |"
    saved = {
        f"{kind}, 0 is {truth or 'none'}.png"
        for kind, truth in zip(kinds.KINDS, truths.values(), strict=True)
    }
    assert {path.name for path in tmp_path.iterdir()} == saved
    (other,) = kinds.drawn("tight crop", 1, 8)
    assert other.picture.tobytes() not in truths


def test_doubt_is_right_where_a_sign_is_no_digit() -> None:
    from kinds import judged

    assert judged("tight crop", "4", reading("4?")) == (True, 0)
    assert judged("tight crop", "4", reading("41?")) == (False, 0)
    assert judged("plus signs", "", reading("1?1?")) == (True, 0)
    assert judged("plus signs", "", reading("1?1")) == (False, 1)
    assert judged("operator close to digits", "41230", reading("414?230")) == (True, 0)
    assert judged("operator close to digits", "41230", reading("4?230")) == (False, 0)
    assert judged("page on its side", "123", reading("7213")) == (False, 2)


def test_pages_lie_as_their_kind_says_and_hold_their_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pages

    monkeypatch.setattr(pages, "HANDS", ("strokes",))  # needs no data
    turns = {}
    for kind in list(pages.KINDS)[-7:]:
        (first,), (again,) = (list(pages.pages(kind, 1, 3, {})) for _ in range(2))
        assert np.array_equal(first.picture, again.picture)
        angles = []
        for _, line in groupby(first.marks, lambda mark: mark.line):
            boxes = np.array([mark.box for mark in line])
            assert boxes.min() >= 0
            assert (boxes[:, 2:] <= first.picture.shape[1::-1]).all()
            x, y = boxes[-1, :2] - boxes[0, :2]
            if abs(x) + abs(y) > 150:
                angles.append(np.degrees(np.arctan2(y, x)))
        turns[kind] = round(abs(float(np.median(np.abs(angles)))) / 90)
        signs = [mark for mark in first.marks if mark.digit < 0]
        assert (len(signs) > 2) == (kind in ("letters and print", "plus signs", "brackets"))
    assert list(turns.values()) == [0, 0, 0, 1, 2, 0, 0]
