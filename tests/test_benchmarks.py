"""The benchmarks and the tools run; their figures are not checked."""

import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT

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
    import numpy as np
    import torch

    for name in handwriting.DRAWN:
        first, again, other = (handwriting.drawn(name, 2, seed) for seed in (0, 0, 1))
        assert [picture.dtype for picture in first.pictures] == [np.uint8] * 2
        assert all(map(np.array_equal, first.pictures, again.pictures))
        assert not any(map(np.array_equal, first.pictures, other.pictures))
    row = handwriting.drawn(handwriting.ROW, 2, 0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)  # every digit is read as 0
    assert handwriting.read(net, row).tolist() == [[0] * 5] * 2
    row.pictures[0][:, : row.pictures[0].shape[1] // 5] = 255  # the first digit is gone
    assert handwriting.read(net, row)[0, 0] == -1
