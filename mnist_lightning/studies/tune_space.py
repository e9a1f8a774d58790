"""What a search tries: settings, each with a range or choices."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mnist_lightning.errors import InputError
from mnist_lightning.files import read_config
from mnist_lightning.settings import difference


def read_distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each setting.

    Raises:
        InputError: If a setting has no valid range or choices.
    """
    if not space:
        raise InputError(
            "the space is empty: give it a flag of fit, "
            "such as lr: {low: 1e-4, high: 1e-2, log: true}"
        )
    return {name: _distribution(name, given) for name, given in space.items()}


def _distribution(name: str, given: Any) -> BaseDistribution:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna changes a range that is no multiple of its step
            if "choices" in given:
                choices = [_as_optuna_takes_it(each) for each in given["choices"]]
                return CategoricalDistribution(**given | {"choices": choices})
            numbers = {key: value for key, value in given.items() if key != "log"}
            if all(type(value) is int for value in numbers.values()):
                return IntDistribution(**given)
            # YAML reads 1e-4 as a text.
            floats = {key: float(value) for key, value in numbers.items()}
            return FloatDistribution(**given | floats)
    except (ValueError, TypeError, AttributeError, UserWarning) as error:
        raise InputError(
            f"--{name} needs low and high, and maybe log or step; or choices; got {given}: {error}"
        ) from error


def _as_optuna_takes_it(choice: Any) -> Any:
    return json.dumps(choice) if isinstance(choice, list | dict) else choice


def settings_of(params: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a trial as the space has them: lists are lists, and 0.3 is 0.3."""
    settings = {}
    for name, value in params.items():
        settings[name] = rounded(value)
        for choice in space[name].get("choices", ()):
            if _as_optuna_takes_it(choice) == value:
                settings[name] = choice
    return settings


def rounded(value: Any) -> Any:
    """Return the value of a setting, without the rounding errors of steps such as 0.1."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def corners(space: Mapping[str, BaseDistribution]) -> Iterator[dict[str, Any]]:
    """Yield params in which each range has its ends once, and each choice is made once."""
    values: dict[str, tuple[Any, ...]] = {}
    for name, each in space.items():
        if isinstance(each, CategoricalDistribution):
            values[name] = tuple(each.choices)
        else:
            values[name] = (each.low, each.high)  # type: ignore[attr-defined]
    first = {name: each[0] for name, each in values.items()}
    for name, ends in values.items():
        for value in ends:
            yield first | {name: value}


def check_folder(folder: Path, space: Mapping[str, BaseDistribution], config: str) -> bool:
    """Refuse a folder with another study; return whether it has this one already.

    Args:
        folder: The study's folder.
        space: The distribution of each setting.
        config: The settings that all trials share, as in ``config.yaml``.

    Raises:
        InputError: If it has a run, or another study.
    """
    if (folder / "run.json").exists():
        raise InputError(f"{folder} is a run: give another name")
    if not (folder / "space.yaml").exists():
        return False
    changed = difference((folder / "config.yaml").read_text(encoding="utf-8"), config)
    if changed or read_distributions(read_config(folder / "space.yaml")) != space:
        raise InputError(
            f"{folder} has a study with another {changed or 'space'}: give another name"
        )
    return True
