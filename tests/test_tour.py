"""The tour, a notebook: ``pytest --nbmake examples/tour.ipynb`` runs it too."""

import ast
import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT, files_in
from nbmake.nb_run import NotebookRun

DOCS = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
TOUR = ROOT / "examples" / "tour.ipynb"


def test_the_tour_shows_what_it_gives() -> None:
    """As tools/tour.py ran it: every cell once, in order, without errors, paths and seconds."""
    assert TOUR.stat().st_size < 600_000
    cells = [cell for cell in nbformat.read(TOUR, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    silent = [cell.id for cell in cells if not cell.outputs]
    assert silent == ["setup", "photo"]
    texts = []
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data", "execute_result"), cell.id
            assert output.get("name") != "stderr", cell.id
            texts.append(output.get("text", ""))
            texts += [text for kind, text in output.get("data", {}).items() if "text/" in kind]
    said = "\n".join(texts)
    assert re.findall(r"(?<![\w/<])/(?:tmp|home|root|work|usr)\w*/\S*| 0x[0-9a-f]+", said) == []
    assert re.findall(r"^Epoch.* \d+\.\d s$", said, re.MULTILINE) == []
    assert "31415" in said


def test_the_tour_imports_from_the_top_alone() -> None:
    code = "\n".join(python_of(TOUR))
    assert re.findall(r"from (mnist_lightning\S*) import|import mnist_lightning", code) == [
        "mnist_lightning"
    ]


def python_of(path: Path) -> list[str]:
    """Return the pieces of Python code in a notebook or a page of Markdown."""
    if path.suffix == ".ipynb":
        return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "examples/tour.ipynb", *sorted(DOCS)]
)
def test_what_the_docs_import_is_there(name: str) -> None:
    for code in python_of(ROOT / name):
        lines = [line for line in code.splitlines() if line[:1] not in "!%"]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mnist_lightning"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name}: {node.module}.{alias.name}"


@pytest.mark.long
def test_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    shutil.copy(TOUR.with_name("page.jpg"), tmp_path)
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
    accuracy = re.search(r"ccuracy</dt><dd>([\d.]+)%", shown["test"][0]["text/html"])
    assert float(accuracy[1] if accuracy else 0) > 93
    assert [len(shown[name]) for name in ("samples", "figures", "page")] == [1, 2, 1]
    assert shown["first"][0]["text/html"].count("<img") == 15
    assert all(
        "image/png" in data for name in ("samples", "figures", "page") for data in shown[name]
    )
    assert shown["reading"][0]["text/html"].count("<img") == 26
    assert printed["contrast"].count("chance") == 2
    assert printed["export"].count("287 of 287") == 1
    assert shown["load"][0]["text/plain"].endswith("True)")
    assert files_in(tmp_path) == {"page.jpg", "tour.ipynb"}
