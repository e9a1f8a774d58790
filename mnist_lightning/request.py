"""What the arguments leave open: which run and which checkpoint they mean."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mnist_lightning import runs
from mnist_lightning.errors import InputError
from mnist_lightning.files import open_regular

LARGEST_CONFIG = 100_000  # bytes, also once its aliases are expanded; a run's own has 5,000
DEEPEST = 50
VERBS = {
    "fit": "Train, and keep the checkpoint with the best validation accuracy.",
    "validate": "Measure a checkpoint on the validation images.",
    "test": "Measure a checkpoint on the test images, and write a report.",
    "predict": "Classify the test images, or your own pictures, and write predictions.csv.",
    "describe": "Print and draw what a data set holds: its digits, its pixels, its splits.",
    "doctor": "Check a machine or a cluster allocation in seconds, before a long run is trusted to it.",
}


class Request(NamedTuple):
    """What the arguments ask for once the newest run is looked up."""

    args: list[str]
    root: Path  # the folder of runs
    checkpoint: Path | None  # what to start from
    run: Path | None  # the run folder to continue or to write into
    why: str = ""  # how the checkpoint was found, where the user did not name it


def resolve(args: Sequence[str]) -> Request:
    """Turn what ``--ckpt_path`` leaves open into explicit arguments.

    ``validate``, ``test`` and ``predict`` without it take the best checkpoint of the newest run, and any run's data
    settings go with its checkpoint. ``fit`` from a run's last checkpoint continues that run with all its settings.
    The run's settings come first, so whatever the user gives overrides them.

    Raises:
        InputError: If there is no such checkpoint, no run yet, or an option before the verb.
    """
    verb = args[0] if args else None
    given = _look_ahead(args[1:])
    if verb not in VERBS and (late := [arg for arg in args if arg in VERBS]):
        raise InputError(f"options come after the verb: begin with {late[0]}, got {verb}")
    if verb not in VERBS or any(arg in ("-h", "--help") or arg.startswith("--print_config") for arg in args):
        return Request(list(args), runs_root(None), None, None)
    root = runs_root(given["trainer.default_root_dir"])
    default = "last" if verb == "fit" else "best"
    ckpt_path = given["ckpt_path"] or (None if verb == "fit" else default)
    if ckpt_path is None:
        return Request(list(args), root, None, None)

    checkpoint = runs.find_checkpoint(ckpt_path, root, default)
    run = runs.run_of(checkpoint)
    settings: list[str] = []
    if run is not None and verb == "fit":
        settings = ["--config", str(run / runs.CONFIG)]
    elif run is not None:
        data = read_settings(run / runs.CONFIG).get("data")
        if not isinstance(data, dict):
            raise InputError(
                f"{run / runs.CONFIG} is damaged: it has no data settings; give --data and a checkpoint file"
            )
        settings = ["--config", json.dumps({"data": data})]
    if verb == "fit" and checkpoint.name != runs.LAST:
        run = None  # another branch from an older state: the run it comes from stays as it is
    why = f" (the {ckpt_path} of the newest run)" if ckpt_path in runs.KEYWORDS else ""
    return Request([verb, *settings, *args[1:], "--ckpt_path", str(checkpoint)], root, checkpoint, run, why)


def runs_root(default_root_dir: str | None) -> Path:
    """Return the folder of runs: Lightning's, under ``--trainer.default_root_dir``."""
    return Path(default_root_dir or "") / "lightning_logs"


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a file, none if it is missing or holds no settings.

    Raises:
        InputError: If the file is no YAML, or would take memory or time out of all proportion.
    """
    try:
        with open_regular(path) as file:
            text = file.read(LARGEST_CONFIG + 1)
    except OSError as error:
        if os.path.lexists(path):  # --config also takes the settings themselves
            raise InputError(f"cannot read {path}: {error.strerror}; give a configuration file") from error
        return {}
    try:
        if len(text) > LARGEST_CONFIG:
            raise ValueError(f"larger than {LARGEST_CONFIG:,} bytes")
        loader = _Loader(text.decode())
        node = loader.get_single_node()
        if node is None:
            return {}
        if _expanded(node, DEEPEST, {}) > LARGEST_CONFIG:
            raise ValueError("too large once its aliases are expanded")
        config = loader.construct_document(node)
        json.dumps(config)  # refuses sets, bytes and dates, which no setting is
    except RecursionError as error:
        raise InputError(f"{path} is no configuration: nested too deeply") from error
    except Exception as error:  # PyYAML raises whatever it likes, and so would the parser
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is no configuration: {reason:.300}") from error
    return config if isinstance(config, dict) else {}


class _Loader(yaml.SafeLoader):
    """Reads a date as the text it is, as the parser does."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _expanded(node: yaml.Node, depth: int, known: dict[int, int]) -> int:
    """Return about how many characters a document has, each alias counted as what it stands for."""
    if depth == 0:  # also where a node is an alias of itself
        raise RecursionError
    if id(node) not in known:
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        known[id(node)] = 1 + own + sum(_expanded(part, depth - 1, known) for part in parts)
    return known[id(node)]


def _look_ahead(args: Sequence[str]) -> dict[str, str | None]:
    """Read two settings from flags and configuration files before the parser itself does; the last one given wins."""
    found: dict[str, str | None] = {"ckpt_path": None, "trainer.default_root_dir": None}

    class FromConfig(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
            config = read_settings(Path(value))
            for name in found:
                node: Any = config
                for key in name.split("."):
                    node = node.get(key) if isinstance(node, dict) else None
                if node is not None:
                    setattr(namespace, name, str(node))

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action=FromConfig)
    for name in found:
        parser.add_argument(f"--{name}", dest=name)
    known, _ = parser.parse_known_args(list(args))
    return {name: getattr(known, name) for name in found}
