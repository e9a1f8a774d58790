"""Read and check checkpoint files; turn objects into plain settings and back.

Settings are a class path and arguments, as in a configuration file. A checkpoint names its network
with them, so that a file holds weights and plain values alone, and no code.
"""

import importlib
import inspect
import json
import warnings
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_lightning.errors import InputError
from mnist_lightning.files import with_public_names

# What an untrusted file may name.
TRUSTED = (
    "mnist_lightning.",
    "torch.nn.",
    "torch.optim.",
    "lightning.pytorch.cli.ReduceLROnPlateau",
)
NOT_PLAIN = object()
# The network that comes with this package; pretrained.md beside it says what it is.
PRETRAINED = Path(__file__).with_name("pretrained.safetensors")


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
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return isinstance(value, (bool, int, float, str, NoneType))


def to_settings(thing: Any, lossy: bool = False) -> dict[str, Any] | None:
    """Describe an object whose arguments are stored in attributes of the same names, as in ``MLP``.

    Args:
        thing: The object.
        lossy: Whether an argument that is not a plain value becomes a text that no parser accepts.

    Returns:
        ``class_path`` and ``init_args``, or None if an argument is not stored, or is not a plain
        value.

    >>> from mnist_lightning import MLP
    >>> to_settings(MLP([32]))["init_args"]
    {'hidden_sizes': [32], 'dropout': 0.2, 'activation': 'ReLU', 'batch_norm': False}
    """
    arguments: dict[str, Any] = {}
    for base in type(thing).__mro__:
        parameters = inspect.signature(base).parameters.values()
        if any(each.kind is each.VAR_POSITIONAL for each in parameters):
            return None
        names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
        for name in names:
            value = getattr(thing, name, NOT_PLAIN)
            arguments[name] = _as_setting(value)
            if lossy and not is_plain(arguments[name]):
                arguments[name] = f"<{value!r:.80}>"
        if len(names) == len(parameters):  # no **kwargs, so the base class has no more arguments
            break
    if not is_plain(arguments):
        return None
    path = f"{type(thing).__module__}.{type(thing).__qualname__}"
    return {"class_path": with_public_names(path), "init_args": arguments}


def _as_setting(value: Any) -> Any:
    """Return the settings of a network or a list of networks; any other value as files hold it."""
    if isinstance(value, nn.ModuleList):
        return [_as_setting(each) for each in value]
    if isinstance(value, nn.Module):
        return to_settings(value) or NOT_PLAIN
    return plain(value)


def from_settings(settings: Any, trusted: bool = False) -> Any:
    """Create what settings describe; of an optimizer or scheduler, a function that creates it.

    Args:
        settings: A dict with ``class_path`` and perhaps ``init_args``, in which others may be
            nested, or a list of these; any other value is returned as it is.
        trusted: Whether any class may be made; without it only networks, optimizers and schedulers
            of torch and of this package.

    Raises:
        InputError: If a class is missing or not trusted, or refuses its arguments.
    """
    if isinstance(settings, list) and settings and all(map(_names_a_class, settings)):
        return [from_settings(each, trusted) for each in settings]
    if not _names_a_class(settings):
        return settings
    path = str(settings["class_path"])
    if not trusted and not path.startswith(TRUSTED):
        raise InputError(
            f"{path:.100} is not a class of torch.nn, torch.optim or mnist_lightning, and a "
            "checkpoint may name no other: give the run folder, or in Python "
            "load_run(file, net=...)"
        )
    try:
        module, _, name = path.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        is_class = isinstance(cls, type)
        is_factory = is_class and issubclass(cls, (Optimizer, LRScheduler))
        if not trusted and not is_factory and not (is_class and issubclass(cls, nn.Module)):
            raise TypeError("not a network, an optimizer or a scheduler")
        arguments = settings.get("init_args") or {}
        made = {key: from_settings(value, trusted) for key, value in arguments.items()}
        return partial(cls, **made) if is_factory else cls(**made)
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise InputError(f"cannot make {path:.100}: {reason}") from error


def _names_a_class(settings: Any) -> bool:
    return isinstance(settings, dict) and "class_path" in settings


def read_checkpoint(
    path: str | Path, map_location: Any = "cpu", weights_only: bool = True
) -> dict[str, Any]:
    """Read a checkpoint or safetensors file as weights and plain values; code in it does not run.

    Raises:
        InputError: If the file is missing, damaged, or not a checkpoint of this package.
    """
    try:
        if Path(path).suffix == ".safetensors":
            checkpoint = _read_safetensors(path, map_location)
        else:
            with warnings.catch_warnings(action="ignore"):  # about how the file was pickled
                checkpoint = torch.load(path, map_location, weights_only=weights_only)
        settings = with_public_names(checkpoint.get("hyper_parameters", {}))
        for name, value in checkpoint["state_dict"].items():
            if not (isinstance(name, str) and isinstance(value, Tensor)):
                raise TypeError("not a weight")
        if not isinstance(settings, dict):
            raise TypeError("not settings")
        checkpoint["hyper_parameters"] = settings
    except Exception as error:  # damaged bytes may raise anything
        damaged = "it is damaged, or holds more than weights and plain values"
        reason = getattr(error, "strerror", None) or damaged
        hint = "give a checkpoint that fit wrote"
        raise InputError(f"cannot read the checkpoint {path}: {reason}; {hint}") from error
    content: dict[str, Any] = checkpoint
    return content


def _read_safetensors(path: str | Path, map_location: Any) -> dict[str, Any]:
    with safe_open(path, "pt", str(map_location)) as file:
        state = {f"net.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = file.metadata() or {}
    settings = json.loads(texts.get("network", "null"))
    record = {"trained_on": json.loads(texts.get("trained_on", "null"))}
    return {
        "state_dict": state,
        "hyper_parameters": {} if settings is None else {"net": settings},
        "callbacks": {"RunRecord": record},
    }


def read_network(path: str | Path = PRETRAINED, trusted: bool = False) -> nn.Module:
    """Return the network of a safetensors file that names it, in evaluation mode.

    Args:
        path: The file; by default that of the network that comes with this package.
        trusted: Whether it may name any class, as for ``from_settings``.

    Raises:
        InputError: If the file is damaged, or names a class that is not trusted.
    """
    checkpoint = read_checkpoint(path)
    net: nn.Module = from_settings(checkpoint["hyper_parameters"].get("net"), trusted)
    state = {name.removeprefix("net."): value for name, value in checkpoint["state_dict"].items()}
    net.load_state_dict(state)
    return net.eval()


def load_weights(
    model: nn.Module, checkpoint: dict[str, Any], path: str | Path, strict: bool = True
) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        InputError: If they are for another network; the first difference is named.
    """
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=strict)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path} is for another network: {reason:.200}") from error


def copy_weights(net: nn.Module, checkpoint: dict[str, Any], path: Path) -> list[str]:
    """Copy a checkpoint's weights into a network, where names and shapes are the same.

    Returns:
        The names of the network's weights that stay as they are.

    Raises:
        InputError: If no weight fits.
    """
    source = {name.removeprefix("net."): value for name, value in checkpoint["state_dict"].items()}
    own = net.state_dict()
    fits = {}
    for name, value in own.items():
        if name in source and source[name].shape == value.shape:
            fits[name] = source[name]
    if not fits:
        raise InputError(
            f"no weight in {path} fits this network: give a checkpoint of a similar one"
        )
    net.load_state_dict(fits, strict=False)
    return sorted(own.keys() - fits.keys())


def as_list(value: Any) -> list[Any]:
    """Return a list of None, one value or several values."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
