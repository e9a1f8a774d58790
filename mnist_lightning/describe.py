"""The verb ``describe``: what a data module holds, as a table and as pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # it is documented all the same
from lightning.pytorch.cli import LightningArgumentParser

from mnist_lightning.data.base import DigitDataModule, GatheredDataset
from mnist_lightning.errors import InputError, refusals
from mnist_lightning.files import write_atomic
from mnist_lightning.request import read_settings


def describe(args: Sequence[str], **parser_kwargs: Any) -> None:
    """Print what each split of a data module holds, and draw its digits.

    Args:
        args: The arguments after the verb.
        **parser_kwargs: The parser's.

    Raises:
        InputError: If the data or the folder cannot be used.
    """
    parser = data_parser(**parser_kwargs)
    parser.add_argument(
        "--output", type=str, default=None, help="Folder to write to; lightning_logs/describe_<data> by default."
    )
    config = parser.parse_args(only_data(args))
    with refusals():
        data: DigitDataModule = parser.instantiate_classes(config).data
    data.prepare_data()
    data.setup()
    arrays = {
        name: _arrays(split)
        for name, split in (("training", data.train_set), ("validation", data.val_set), ("test", data.test_set))
    }
    # Here, since matplotlib takes a while to import.
    from mnist_lightning.evaluation import description, description_figures, figures

    splits = {name: description.describe(images, labels) for name, (images, labels) in arrays.items()}
    print(f"{type(data).__name__}\n\n{description.description_table(splits)}\n", flush=True)
    drawn = {
        "digit_counts": description_figures.digit_counts(splits),
        "samples": description_figures.sample_grid(*arrays["training"]),
        "mean_digits": description_figures.mean_digits(*arrays["training"]),
    }
    folder = Path(config.output or f"lightning_logs/describe_{type(data).__name__}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "description.json", json.dumps(splits, indent=2) + "\n")
        for name, figure in drawn.items():
            figures.save(figure, folder / f"{name}.png")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --output") from error
    print(f"Written: {folder}/ with description.json, {', '.join(f'{name}.png' for name in drawn)}")


def data_parser(**parser_kwargs: Any) -> LightningArgumentParser:
    """Return a parser of the flags that choose and set up the data; its arguments go through ``only_data`` first."""
    parser = LightningArgumentParser(**parser_kwargs)
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="A recipe or a run's config.yaml: its data settings are used."
    )
    parser.add_lightning_class_args(DigitDataModule, "data", subclass_mode=True)
    parser.set_defaults({"data": {"class_path": "mnist_lightning.MNIST"}})
    return parser


def only_data(args: Sequence[str]) -> list[str]:
    """Reduce the configuration files among the arguments to their data settings: they also say how to train.

    Raises:
        InputError: If a file is missing or has no data settings.
    """
    reduced = []
    rest = iter(args)
    for arg in rest:
        name, has_value, value = arg.partition("=")
        if name not in ("-c", "--config"):
            reduced.append(arg)
            continue
        path = Path(value if has_value else next(rest, ""))
        if not path.is_file():
            raise InputError(f"no configuration file at {path}")
        data = read_settings(path).get("data")
        if data is None:
            raise InputError(f"no data settings in {path}: give --config a recipe or a run's config.yaml")
        reduced += ["--config", json.dumps({"data": data})]
    return reduced


def _arrays(split: GatheredDataset | None) -> tuple[Any, Any]:
    """Return a split's images ``(N, 28, 28)`` and its labels ``(N,)``, None where they are unknown."""
    assert split is not None
    images, *labels = (tensor[split.rows].numpy() for tensor in split.tensors)
    return images, labels[0] if labels else None
