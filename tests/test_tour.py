"""The tour, a notebook: ``pytest --nbmake examples/tour.ipynb`` runs it too."""

import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT, files_in
from nbmake.nb_run import NotebookRun

TOUR = ROOT / "examples" / "tour.ipynb"


def test_the_tour_has_no_outputs() -> None:
    cells = [cell for cell in nbformat.read(TOUR, 4).cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count] == []


@pytest.mark.long
def test_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    ran = NotebookRun(Path(shutil.copy(TOUR, tmp_path)), default_timeout=300).execute()
    assert ran.error is None
    outputs: dict[str, Any] = {
        cell.id: cell.outputs for cell in ran.nb.cells if cell.cell_type == "code"
    }
    printed = {name: "".join(out.get("text", "") for out in outs) for name, outs in outputs.items()}
    shown = {name: [out.data for out in outs if "data" in out] for name, outs in outputs.items()}
    assert {out.get("name") for outs in outputs.values() for out in outs} == {
        None,
        "stdout",
    }  # no warnings
    accuracy = re.search(r"accuracy</div><div[^>]*>([\d.]+)%", shown["test"][0]["text/html"])
    assert float(accuracy[1] if accuracy else 0) > 93
    assert [len(shown[name]) for name in ("samples", "figures", "page")] == [1, 2, 1]
    assert all(
        "image/png" in data for name in ("samples", "figures", "page") for data in shown[name]
    )
    assert shown["reading"][0]["text/html"].count("<img") == 26
    assert printed["contrast"].count("chance") == 2
    assert printed["export"].count("287 of 287") == 2
    assert shown["load"][0]["text/plain"].endswith("True)")
    assert files_in(tmp_path) == {"tour.ipynb"}
