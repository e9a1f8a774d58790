import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mnist_lightning.evaluation import figures


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the scripts importable, as they are to one another."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def run_of(row: str, seconds: float, accuracy: float = 0.9) -> dict[str, object]:
    measured = {"fit_seconds": seconds, "command_seconds": seconds + 5, "peak_rss_mb": 100 * seconds}
    return {"row": row, "accuracy": accuracy, **measured}


def test_rows_are_compared_by_their_medians(tmp_path: Path) -> None:
    import speed

    ours = [run_of("ours", seconds, accuracy) for seconds, accuracy in ((9.0, 0.96), (3.0, 0.98), (6.0, 0.97))]
    peer = [run_of("torch-loop", seconds) for seconds in (2.0, 4.0, 4.5)]
    mixed = [run for pair in zip(ours, peer, strict=True) for run in pair]
    summary = speed.summarise(mixed)
    assert summary["ours"] == {
        "median": 6.0,
        "min": 3.0,
        "max": 9.0,
        "accuracy": pytest.approx(0.97),
        "peak_rss_mb": 600.0,
        "command_median": 11.0,
        "to_torch-loop": 1.5,
    }
    assert summary["torch-loop"]["to_torch-loop"] == 1
    assert speed.comparison(summary) == (
        "| fit, s           | median | min | max | / torch loop |    accuracy | peak MB | command, s |\n"
        "| ---------------- | -----: | --: | --: | -----------: | ----------: | ------: | ---------: |\n"
        "| mnist_lightning  |    6.0 | 3.0 | 9.0 |         1.50 |  97.00% val |     600 |       11.0 |\n"
        "| plain torch loop |    4.0 | 2.0 | 4.5 |         1.00 | 90.00% test |     400 |        9.0 |"
    )
    axis = speed.bars(summary, "two cores").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["mnist_lightning", "plain torch loop"]
    assert [bar.get_width() for bar in axis.patches] == [6.0, 4.0]
    assert [text.get_text() for text in axis.texts] == ["6.0 s", "4.0 s"]
    figures.save(axis.figure, tmp_path / "speed.png")


def test_memory_is_compared_with_the_bytes_added() -> None:
    import growth

    def run_of(times: int, seconds: float, peak: float) -> dict[str, object]:
        measured = {"seconds_per_update": seconds, "peak_rss_mb": peak, "peak_anonymous_mb": 100.0}
        return {"kind": "in memory", "times": times, "images": 60_000 * times, **measured}

    added = 3 * 60_000 * 28 * 28 / 1e6
    runs = [run_of(1, 2e-3, 500), run_of(4, 3e-3, 500 + 2 * added)] * 3 + [run_of(1, 9e-3, 999)]
    one, four = growth.summarise(runs)
    assert one == {**run_of(1, 2e-3, 500), "min": 2e-3, "max": 9e-3, "to_smallest": 1}
    assert four["peak_rss_mb_per_byte"] == pytest.approx(2)
    assert four["peak_anonymous_mb_per_byte"] == 0
    assert four["to_smallest"] == 1.5


def test_a_command_runs_in_a_terminal_that_is_read_to_the_end() -> None:
    import measure

    program = (
        "import os, sys; held = bytearray(200_000_000); print(sys.stdout.isatty(), os.get_terminal_size().columns)"
    )
    done = measure.run(
        [sys.executable, "-c", program + "; print('x' * 1_000_000, os.environ['WORD'])"], {"WORD": "end"}
    )
    first, second, _ = done.output.split("\n")
    assert first == "True 120"
    assert second == "x" * 1_000_000 + " end"
    assert done.peak_rss_mb > 200
    with pytest.raises(SystemExit, match=r"(?s)failed with exit code 3:.*reason"):
        measure.run([sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"])
