"""What a search tries: flags of ``fit``, each with a range or choices."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mnist_lightning.errors import InputError
from mnist_lightning.studies.train import difference, make, refuse, refuse_seen_images, shared_settings
from mnist_lightning.studies.tune_report import tidy
from mnist_lightning.training.runs import read_config


def read_distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each flag.

    Raises:
        InputError: If a flag has no valid range or choices.
    """
    if not space:
        raise InputError("the space is empty: give it a flag of fit, such as lr: {low: 1e-4, high: 1e-2, log: true}")
    return {flag: _distribution(flag, given) for flag, given in space.items()}


def _distribution(flag: str, given: Any) -> BaseDistribution:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna changes a range that is no multiple of its step
            if "choices" in given:
                choices = [json.dumps(each) if isinstance(each, (list, dict)) else each for each in given["choices"]]
                return CategoricalDistribution(**given | {"choices": choices})
            numbers = {key: value for key, value in given.items() if key != "log"}
            if all(type(value) is int for value in numbers.values()):
                return IntDistribution(**given)
            return FloatDistribution(**given | {key: float(value) for key, value in numbers.items()})  # 1e-4 is a text
    except (ValueError, TypeError, AttributeError, UserWarning) as error:
        raise InputError(
            f"--{flag} needs low and high, and maybe log or step; or choices; got {given}: {error}"
        ) from error


def check(space: Mapping[str, BaseDistribution], flags: Sequence[str], folder: Path) -> str:
    """Return the settings that all trials share, as in ``config.yaml``.

    Args:
        space: The distribution of each flag.
        flags: The flags of ``fit`` that all trials share.
        folder: The study's folder.

    Raises:
        InputError: If a flag does not exist, or a range or choice is invalid; or the folder has another study.
    """
    refuse(flags, space, "the space tries it, so leave it out of one of them")
    cli = shared_settings(flags)
    refuse_seen_images(cli)
    if not cli.datamodule.val_fraction:
        raise InputError("tune compares runs on validation images, so data.val_fraction must be above 0")
    if (folder / "run.json").exists():
        raise InputError(f"{folder} is a run: give another --name")
    settings: str = cli.text
    if (folder / "space.yaml").exists():
        changed = difference((folder / "config.yaml").read_text(encoding="utf-8"), settings)
        if changed or read_distributions(read_config(folder / "space.yaml")) != space:
            raise InputError(f"{folder} has a study with another {changed or 'space'}: give another --name")
        return settings  # its values were checked when it began
    values = {flag: getattr(each, "choices", None) or (each.low, each.high) for flag, each in space.items()}  # type: ignore[attr-defined]
    first = {flag: each[0] for flag, each in values.items()}
    for flag, each in values.items():
        for value in each:
            refuse_seen_images(make([*flags, *as_flags(first | {flag: value})])[0])
    return settings


def as_flags(params: Mapping[str, Any]) -> list[str]:
    """Return the flags of ``fit`` for the settings of a trial."""
    return [
        f"--{flag}={value if isinstance(value, str) else json.dumps(tidy(value))}" for flag, value in params.items()
    ]
