"""Convert objects to plain settings, a class path and arguments as in a configuration file, and back."""

import importlib
import inspect
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_lightning.errors import InputError

MISSING = object()
TRUSTED = ("mnist_lightning.", "torch.nn.", "torch.optim.", "lightning.pytorch.cli.ReduceLROnPlateau")


def to_settings(thing: Any, lossy: bool = False) -> dict[str, Any] | None:
    """Describe an object whose arguments are stored in attributes of the same names, as ``MLP`` does.

    Args:
        thing: The object.
        lossy: Whether an argument that is not a plain value becomes a text that no parser accepts.

    Returns:
        ``class_path`` and ``init_args``, or None if an argument is not stored, or is not a plain value.

    >>> from mnist_lightning import MLP
    >>> to_settings(MLP([32]))["init_args"]
    {'hidden_sizes': [32], 'dropout': 0.2, 'activation': 'ReLU', 'batch_norm': False}
    """
    arguments: dict[str, Any] = {}
    for base in type(thing).__mro__:
        parameters = inspect.signature(base).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        if inspect.Parameter.VAR_POSITIONAL in kinds:
            return None
        for name in (parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD):
            value = getattr(thing, name, MISSING)
            plain = _plain(value)
            arguments[name] = f"<{value!r:.80}>" if lossy and not is_plain(plain) else plain
        if inspect.Parameter.VAR_KEYWORD not in kinds:  # otherwise the base has more arguments
            break
    path = f"{type(thing).__module__}.{type(thing).__qualname__}"
    return {"class_path": path, "init_args": arguments} if is_plain(arguments) else None


def _plain(value: Any) -> Any:
    """Return the settings of a network or of a list of networks; any other value as files can hold it."""
    if isinstance(value, nn.ModuleList):
        return [_plain(each) for each in value]
    return (to_settings(value) or MISSING) if isinstance(value, nn.Module) else plain(value)


def plain(value: Any) -> Any:
    """Return a value as files can hold it: NumPy's numbers and arrays as Python's, paths as text.

    >>> plain({"lr": np.float64(0.5), "folder": Path("data")})
    {'lr': 0.5, 'folder': 'data'}
    """
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if type(value) is dict:
        return {plain(key): plain(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def is_plain(value: Any) -> bool:
    """Return whether a value is of numbers, strings, lists and dicts alone."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, (dict, list, tuple, bool, int, float, str, NoneType)) and all(map(is_plain, parts))


def from_settings(settings: Any, trusted: bool = False) -> Any:
    """Create the object that settings describe; for an optimizer or a scheduler, a function that creates one.

    Args:
        settings: A dict with ``class_path`` and perhaps ``init_args``, in which others may be nested, or a list of
            these; any other value is returned as it is.
        trusted: Whether any class may be made; without it only networks, optimizers and schedulers of torch and of
            this package.

    Raises:
        InputError: If a class is missing or not trusted, or refuses its arguments.
    """
    if (
        isinstance(settings, list)
        and settings
        and all(isinstance(each, dict) and "class_path" in each for each in settings)
    ):
        return [from_settings(each, trusted) for each in settings]
    if not isinstance(settings, dict) or "class_path" not in settings:
        return settings
    path = settings["class_path"]
    module, _, name = str(path).rpartition(".")
    if not trusted and not str(path).startswith(TRUSTED):
        raise InputError(
            f"{path!s:.100} is not a class of torch.nn, torch.optim or mnist_lightning, and a checkpoint may name "
            "no other: give the run folder, or in Python load_run(file, net=...)"
        )
    try:
        cls = getattr(importlib.import_module(module), name)
        factory = isinstance(cls, type) and issubclass(cls, (Optimizer, LRScheduler))
        if not trusted and not (factory or (isinstance(cls, type) and issubclass(cls, nn.Module))):
            raise TypeError("not a network, an optimizer or a scheduler")
        arguments = {key: from_settings(value, trusted) for key, value in (settings.get("init_args") or {}).items()}
        return partial(cls, **arguments) if factory else cls(**arguments)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot make {path!s:.100}: {type(error).__name__}: {error!s:.200}") from error
