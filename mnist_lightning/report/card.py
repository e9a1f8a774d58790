"""The model card of an exported network, in Hugging Face's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_lightning.files import write_atomic
from mnist_lightning.report.pages import render
from mnist_lightning.report.results import record_values, robustness_table


def write_card(
    file: Path,
    record: Mapping[str, Any],
    trained_on: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    names: Sequence[str],
    checked: str = "",
) -> Path:
    """Write the card of a network's file beside it, and return its path, such as ``m.onnx.md``.

    Args:
        file: The network's file: ``.onnx``, ``.safetensors``, ``.keras`` or ``.pt2``.
        record: The content of the run's ``run.json``, with ``layers``; the rest may be missing.
        trained_on: The data and the split of each training that the weights have learnt from.
        metrics: The content of the ``metrics.json`` of a test; empty if there was none.
        names: The names of the labels 0-9.
        checked: A sentence that says how the file was compared with the network.

    Raises:
        OSError: If the folder cannot be written to.
    """
    changed = robustness_table(metrics["robustness"]) if "robustness" in metrics else None
    text = render(
        "card.md",
        file=file,
        record=record,
        facts=record_values(record),
        trained_on=trained_on,
        metrics=metrics,
        changed=changed,
        names=names,
        checked=checked,
    )
    card = file.with_name(f"{file.name}.md")
    write_atomic(card, f"{text}\n".encode(errors="replace"))
    return card
