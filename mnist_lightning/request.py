"""What the arguments leave open: which run and which checkpoint they mean."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mnist_lightning import runs
from mnist_lightning.errors import InputError

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
    if verb not in VERBS and (late := [arg for arg in args if arg in VERBS]):
        raise InputError(f"options come after the verb: begin with {late[0]}, got {verb}")
    if verb not in VERBS or any(arg in ("-h", "--help") or arg.startswith("--print_config") for arg in args):
        return Request(list(args), runs_root(None), None, None)
    given = _look_ahead(args[1:])
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
    """Return the settings in a file, none if it cannot be read or holds no settings."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _look_ahead(args: Sequence[str]) -> dict[str, str | None]:
    """Read two settings from flags and configuration files before the parser itself does; the last one given wins."""
    found: dict[str, str | None] = {"ckpt_path": None, "trainer.default_root_dir": None}

    class FromConfig(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
            config = read_settings(Path(value))  # what is wrong with it, the parser will say
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
