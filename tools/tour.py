"""Run examples/tour.ipynb, and keep its outputs in it without paths and times.

    python tools/tour.py

GitHub then shows what the notebook gives. It needs pip install -e '.[notebook]'.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TOUR = Path(__file__).parent.parent / "examples" / "tour.ipynb"
# What is another one each time: folders, seconds, moments, and the names of objects in memory.
CHANGES = (
    (r"(/[\w.-]+)*/tmp\w{6,}", "lightning_logs"),
    (r"  \d+\.\d s$", ""),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d", "today"),
    (r"(<dt>Seconds of training</dt><dd>)[\d.,]+", r"\1-"),
)


def cleaned(text: str) -> str:
    """Return an output without what changes."""
    for pattern, replacement in CHANGES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def main() -> None:
    """Run the notebook where it lies, and write it."""
    notebook = nbformat.read(TOUR, 4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": TOUR.parent}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if "text" in output:
                output.text = cleaned(output.text)
            for kind, content in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = cleaned(content)
        cell.outputs = joined(each for each in cell.outputs if not is_empty(each))
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
    nbformat.write(notebook, TOUR)


def joined(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return the outputs, what was printed one after the other as one."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        is_text = output.output_type == "stream"
        if is_text and kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def is_empty(output: nbformat.NotebookNode) -> bool:
    """Return whether an output shows nothing, such as a bar that has vanished."""
    data = output.get("data", {})
    return data.keys() == {"text/plain"} and not data["text/plain"].strip()


if __name__ == "__main__":
    main()
