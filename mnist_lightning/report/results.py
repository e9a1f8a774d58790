"""Results as blocks: of a run, of a test and of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_lightning.report.blocks import Block, Facts, Picture, Table
from mnist_lightning.report.text import DIGIT_NAMES, class_word, counted, or_na

# What is shown of run.json: its key, a name and a format.
RECORD = {
    "dataset": ("Trained on", "{}"),
    "network": ("Network", "{}"),
    "num_parameters": ("Parameters", "{:,}"),
    "optimizer": ("Optimizer", "{}"),
    "lr": ("Learning rate", "{:g}"),
    "lr_scheduler": ("Learning rate schedule", "{}"),
    "batch_size": ("Batch size", "{:,}"),
    "augmentation": ("Augmentation", "{}"),
    "seed": ("Seed", "{}"),
    "best_val_acc": ("Best validation accuracy", "{:.2%}"),
    "best_epoch": ("Best epoch", "{}"),
    "epochs": ("Epochs", "{}"),
    "global_step": ("Updates", "{:,}"),
    "started": ("Started", "{}"),
    "fit_seconds": ("Seconds of training", "{:,.1f}"),
    "device": ("Device", "{}"),
    "precision": ("Floating-point precision", "{}"),
    "net_arguments": ("Arguments of the network", "{}"),
    "versions": ("Versions", "{}"),
}
AFTER_FIT = ("best_val_acc", "best_epoch", "epochs", "global_step", "fit_seconds")
IN_A_NOTEBOOK = ("network", "dataset", "epochs", "fit_seconds", "best_val_acc")
# Units of the strengths in a robustness test; the strength of noise is a share of white.
UNITS = {"shift": " px", "rotation": "°", "noise": "", "blur": " px", "stroke": " px"}
# Of the pixels that describe a data set.
PIXELS = {
    "pixel_mean": ".4f",
    "pixel_std": ".4f",
    "pixel_min": "d",
    "pixel_max": "d",
    "always_zero": ".1%",
}
PIXELS_CAPTION = (
    "Pixel mean and std are fractions of white; pixel min and max are in 0-255.\n"
    "Always zero is the share of pixel positions that are black in every image."
)
MOST_MISTAKES = 10


def record_values(record: Mapping[str, Any], keys: Sequence[str] = tuple(RECORD)) -> dict[str, str]:
    """Return names and values of a ``run.json``; what is missing or None is left out."""
    values = {}
    for key in keys:
        name, style = RECORD[key]
        value = record.get(key)
        if value is not None:
            values[name] = _formatted(key, value, style)
    return values


def _formatted(key: str, value: Any, style: str) -> str:
    if key == "best_epoch" and isinstance(value, int):
        value += 1  # people count from 1
    elif key == "started":
        value = str(value)[:16].replace("T", " ")
    elif isinstance(value, Mapping):
        value = ", ".join(f"{name} {each}" for name, each in value.items())
    try:
        return style.format(value)[:300]
    except (ValueError, TypeError, OverflowError):  # somebody edited the record
        return str(value)[:300]


def fit_facts(record: Mapping[str, Any], folder: Path) -> Facts:
    """Return what ``fit`` prints of a ``run.json`` at its end."""
    return Facts({**record_values(record, AFTER_FIT), "Run folder": str(folder)})


def run_facts(record: Mapping[str, Any]) -> Facts:
    """Return what a page shows of a ``run.json``."""
    values = record_values(record)
    layers, command = record.get("layers"), record.get("command")
    if isinstance(layers, list):
        values["Layers"] = "\n".join(map(str, layers))
    if isinstance(command, str):
        is_given = record.get("first_weights") == "given"
        but = ", but with other first weights: these were given in Python" if is_given else ""
        values[f"To repeat it{but}"] = command
    return Facts(values)


def run_html(folder: Path, record: Mapping[str, Any], test_accuracy: Any) -> str:
    """Return what a notebook shows of a run: its results, and its learning curves if it has some.

    Args:
        folder: The run folder.
        record: The content of its ``run.json``; what is missing is left out.
        test_accuracy: The accuracy of the test images in [0, 1], or None.
    """
    from mnist_lightning.report.pages import notebook  # here, since Jinja takes a while

    values = record_values(record, IN_A_NOTEBOOK)
    if test_accuracy is not None:
        values["Test accuracy"] = _formatted("accuracy", test_accuracy, "{:.2%}")
    blocks: list[Block] = [Facts(values)]
    if (curves := folder / "curves.png").is_file():
        blocks.append(Picture(curves.read_bytes(), "Learning curves"))
    return notebook(blocks, str(folder))


class Metrics(dict[str, Any]):
    """The content of ``metrics.json``, which a notebook shows as a table.

    Args:
        content: The content; empty if nothing was measured.
        page: The report.
    """

    def __init__(self, content: Mapping[str, Any], page: Path) -> None:
        super().__init__(content)
        self.page = page

    def _repr_html_(self) -> str | None:
        from mnist_lightning.report.pages import notebook  # here, since Jinja takes a while

        return notebook(metrics_blocks(self), metrics_title(self), self.page) if self else None


def metrics_title(metrics: Mapping[str, Any]) -> str:
    """Return what was tested, such as "MNIST, 10,000 test images"."""
    return f"{metrics['dataset']}, {counted(metrics['num_examples'], 'test image')}"


def metrics_blocks(metrics: Mapping[str, Any]) -> list[Block]:
    """Return what the terminal and a notebook show of a ``metrics.json``."""
    changed = [robustness_table(metrics["robustness"])] if "robustness" in metrics else []
    return [metrics_facts(metrics), class_table(metrics), *changed]


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Return the same as text."""
    return "\n\n".join(map(str, [metrics_title(metrics), *metrics_blocks(metrics)]))


def metrics_facts(metrics: Mapping[str, Any]) -> Facts:
    """Return the metrics of a test over all its images."""
    right = sum(row[digit] for digit, row in enumerate(metrics["confusion_matrix"]))
    images = metrics["num_examples"]
    return Facts(
        {
            "accuracy": or_na(metrics["accuracy"], ".2%"),
            "loss (cross-entropy, nats)": or_na(metrics["loss"]),
            "F1 (macro)": or_na(metrics["f1_macro"], ".2%"),
            "precision (macro)": or_na(metrics["precision_macro"], ".2%"),
            "recall (macro)": or_na(metrics["recall_macro"], ".2%"),
            "AUROC (macro)": or_na(metrics["auroc_macro"]),
            "calibration error (ECE)": or_na(metrics["ece"], ".2%"),
            f"wrong of {counted(images, 'image')}": f"{images - right:,}",
        }
    )


def class_table(metrics: Mapping[str, Any]) -> Table:
    """Return the metrics of each class, and for what it is mostly taken by mistake."""
    names = metrics["class_names"]
    word = class_word(names)
    columns = (word, "images", "accuracy = recall", "precision", "F1", "AUROC", "mostly taken for")
    rows = []
    for label, counts in enumerate(metrics["confusion_matrix"]):
        shares = (metrics[f"{name}_per_digit"][label] for name in ("recall", "precision", "f1"))
        wrong = [*counts]
        wrong[label] = 0
        most = max(wrong)
        rows.append(
            [
                names[label],
                f"{sum(counts):,}",
                *(or_na(share, ".2%") for share in shares),
                or_na(metrics["auroc_per_digit"][label]),
                f"{names[wrong.index(most)]} ({most:,}x)" if most else "-",
            ]
        )
    return Table(columns, rows, title=f"Each {word}")


def mistakes_table(metrics: Mapping[str, Any]) -> Table:
    """Return the most frequent mistakes, the most frequent first."""
    names = metrics["class_names"]
    word = class_word(names)
    mistakes = frequent_mistakes(metrics["confusion_matrix"], MOST_MISTAKES)
    rows, bars = [], []
    for true, predicted, count, share in mistakes:
        pair = f"{names[true]} → {names[predicted]}"
        rows.append([pair, f"{count:,}", f"{share:.1%}"])
        bars.append(count / mistakes[0][2])
    if not mistakes:
        rows, bars = [["none: all predictions are correct", "0", "0.0%"]], [0]
    columns = "true → predicted", "images", f"share of the {word}'s images"
    return Table(columns, rows, title="Most frequent mistakes", bars=bars)


def frequent_mistakes(
    confusion: Sequence[Sequence[int]], top: int
) -> list[tuple[int, int, int, float]]:
    """Return the most frequent confusions, the most frequent first.

    Args:
        confusion: Counts ``(10, 10)``, rows true, columns predicted.
        top: Return at most this many; confusions that never happened are left out.

    Returns:
        For each the true label, the predicted one, the count, and the share of the true label's
        images.
    """
    mistakes = []
    for true, counts in enumerate(confusion):
        for predicted, count in enumerate(counts):
            if count and predicted != true:
                mistakes.append((true, predicted, count, count / sum(counts)))
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:top]


def robustness_table(robustness: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the accuracy at each strength of each change."""
    most = max(map(len, robustness.values()))
    rows = []
    for kind, accuracies in robustness.items():
        cells = [
            f"{strength + UNITS[kind]:>6} {accuracy:>6.1%}"
            for strength, accuracy in accuracies.items()
        ]
        rows.append([kind, *cells, *[""] * (most - len(cells))])
    columns = ["change", "strength and accuracy", *[""] * (most - 1)]
    return Table(columns, rows, title="Accuracy on changed images")


def description_table(
    splits: Mapping[str, Mapping[str, Any]], names: Sequence[str] = DIGIT_NAMES
) -> Table:
    """Return the descriptions of several splits, one column each.

    Args:
        splits: The result of ``describe`` for each split's name; "-" replaces unknown counts.
        names: The names of the classes.
    """
    word = class_word(names)
    heads = [f"digit {name}" if word == "digit" else name for name in names]
    columns = [["images", *heads, *(name.replace("_", " ") for name in PIXELS)]]
    for split in splits.values():
        images, counts = split["num_examples"], split["num_per_digit"]
        shares = ["-"] * len(names)
        if counts is not None:
            shares = [f"{count:,}  {count / images:6.2%}" for count in counts]
        pixels = [format(split[key], style) for key, style in PIXELS.items()]
        columns.append([f"{images:,}", *shares, *pixels])
    return Table(["", *splits], [*zip(*columns, strict=True)], PIXELS_CAPTION)
