"""The model card of an exported network, in Hugging Face's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mnist_lightning.files import write_atomic
from mnist_lightning.report.pages import render
from mnist_lightning.report.results import record_values, robustness_table
from mnist_lightning.report.text import DIGIT_NAMES

HUB = {"MNIST": "ylecun/mnist", "FashionMNIST": "zalando-datasets/fashion_mnist"}
LIBRARIES = {
    ".onnx": "onnx",
    ".safetensors": "mnist-lightning",
    ".keras": "keras",
    ".pt2": "pytorch",
}


def write_card(
    file: Path,
    record: Mapping[str, Any],
    trained_on: Sequence[Mapping[str, Any]] = (),
    metrics: Mapping[str, Any] | None = None,
    names: Sequence[str] = DIGIT_NAMES,
    checked: str = "",
) -> Path:
    """Write the card of a network's file beside it, and return its path, such as ``m.onnx.md``.

    Args:
        file: The network's file: ``.onnx``, ``.safetensors``, ``.keras`` or ``.pt2``.
        record: The content of the run's ``run.json``; what is missing is left out.
        trained_on: The data and the split of each training that the weights have learnt from.
        metrics: The content of the ``metrics.json`` of a test, if there was one.
        names: The names of the labels 0-9.
        checked: A sentence that says how the file was compared with the network.

    Raises:
        OSError: If the folder cannot be written to.
    """
    metrics = metrics or {}
    known = [each["dataset"] for each in trained_on if each["dataset"]]
    results = []
    for split, source, key in (
        ("validation", record, "best_val_acc"),
        ("test", metrics, "accuracy"),
    ):
        if source.get(key) is not None:
            dataset = source["dataset"]
            results.append(
                {
                    "task": {"type": "image-classification"},
                    "dataset": {"name": dataset, "type": HUB.get(dataset, dataset), "split": split},
                    "metrics": [{"type": "accuracy", "value": source[key]}],
                }
            )
    front = {
        "license": "mit",
        "library_name": LIBRARIES[file.suffix],
        "pipeline_tag": "image-classification",
        "tags": ["mnist-lightning", "handwriting"],
        "datasets": [HUB[name] for name in HUB if name in known],
        "metrics": ["accuracy"],
    }
    if results:
        front["model-index"] = [{"name": file.stem, "results": results}]
    text = render(
        "card.md",
        file=file,
        front=yaml.safe_dump(front, sort_keys=False),
        record=record,
        facts=record_values(record),
        trained_on=trained_on,
        metrics=metrics,
        changed=robustness_table(metrics["robustness"]) if "robustness" in metrics else None,
        names=names,
        checked=checked,
    )
    card = file.with_name(f"{file.name}.md")
    write_atomic(card, f"{text}\n".encode(errors="replace"))
    return card
