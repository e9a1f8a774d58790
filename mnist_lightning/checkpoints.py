"""Checkpoints are untrusted files: weights and plain values are read, anything else is refused."""

import inspect
import io
import os
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_lightning.errors import InputError
from mnist_lightning.files import open_regular, write_atomic

# What a checkpoint may be pickled with. torch.load also takes bytearray and others, whose size a number says.
PLAIN = re.compile(
    r"collections\.(OrderedDict|defaultdict|Counter)|(__builtin__|builtins)\.(set|complex)|_codecs\.encode|"
    r"torch\.(_utils\._rebuild_(tensor|tensor_v2|parameter)|\w+Storage|Size|device|b?float\d+|u?int\d+|bool)"
)
LARGEST_PICKLE = 10_000_000  # bytes; the default recipe's checkpoint has 4,000 beside its weights
MOST_HYPERPARAMETERS = 10_000
TRUSTED = ("mnist_lightning.", "torch.nn.", "torch.optim.", "lightning.pytorch.cli.")  # modules
TRUSTED_BASES = (nn.Module, Optimizer, LRScheduler)
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # Lightning's own, that makes the model
WORD = re.compile(r"[a-z_][a-z0-9_/-]*|")  # a mode such as "min": no class, import path, file or YAML
HYPERPARAMETERS = ("hyper_parameters", "hparams", "module_arguments")  # Lightning reads the old names too


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all: whatever happens, the one before stays until the new one is on disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: D102
        if storage_options is not None or not _is_local_file_protocol(path):  # s3:// and the like
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # where a disk is full, torch says something else about it
        torch.save(checkpoint, content)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint's weights and plain values; code in it is refused and does not run.

    Nor does it take more memory than the file is large, whatever it claims to hold.

    Raises:
        InputError: If the file is no Lightning checkpoint, is damaged, or holds anything else.
    """
    try:
        # Warnings are of how the file was pickled: what matters is told below.
        with open_regular(path) as file, warnings.catch_warnings(action="ignore"):
            _check_archive(path, file)
            file.seek(0)
            checkpoint = torch.load(file, weights_only=True, map_location="cpu")
    except InputError:
        raise
    except Exception as error:  # damaged bytes may raise whatever they like
        reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        raise InputError(f"{path} is no checkpoint, or is damaged{reason}; give one that fit wrote") from error
    for tensor in _tensors(checkpoint):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{path} was not loaded: a tensor in it claims to be larger than what it holds")
    needed = {"state_dict": dict, "global_step": int, "pytorch-lightning_version": str}
    content: dict[str, Any] = checkpoint if isinstance(checkpoint, dict) else {}
    for name, kind in needed.items():
        if not isinstance(content.get(name), kind):
            raise InputError(f"{path} is no Lightning checkpoint: it has no {name}; give one that fit wrote")
    for name, value in content["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.is_complex():
            raise InputError(
                f"{path} is no Lightning checkpoint: its {name!r:.50} is no weight; give one that fit wrote"
            )
    return content


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    """Walk through the tensors of nested values, each once, however often it occurs."""
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, (list, tuple)):
                waiting += value


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Check what is in a checkpoint before it is unpickled: torch.load looks after code, but not after memory."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        size = sum(max(member.file_size, member.compress_size) for member in members)
        if any(member.compress_type for member in members) or size > os.fstat(file.fileno()).st_size:
            raise InputError(f"{path} was not loaded: it is packed, and could unpack to any size")
        # One only: torch takes no notice of capitals.
        (pickled,) = (member for member in members if member.filename.lower().endswith("/data.pkl"))
        if pickled.file_size > LARGEST_PICKLE:
            raise InputError(f"{path} was not loaded: it holds {pickled.file_size:,} bytes beside the weights")
        for opcode, argument, _ in pickletools.genops(archive.read(pickled)):
            if opcode.name in ("GLOBAL", "INST") and not PLAIN.fullmatch(name := str(argument).replace(" ", ".")):
                raise InputError(
                    f"{path} was not loaded: it holds {name}, and anything but weights and plain values could run code"
                )


def check_made_by(path: Path, checkpoint: dict[str, Any], model_class: type) -> None:
    """Check that a checkpoint's hyperparameters are some that the class takes.

    Raises:
        InputError: If one of them is not; the first such is named.
    """
    known = inspect.signature(model_class).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for key in HYPERPARAMETERS:
        hyperparameters = checkpoint.get(key, {})
        if not isinstance(hyperparameters, dict):
            raise InputError(f"{path} is no Lightning checkpoint: its {key} are no dict; give one that fit wrote")
        for name in hyperparameters:
            if not takes_any and name != "_instantiator" and name not in known:  # Lightning's own
                raise InputError(f"{path} is no checkpoint of {model_class.__name__}, which takes no {name!r:.50}")


def check_names(path: Path, checkpoint: dict[str, Any], *given: Any) -> None:
    """Check that a checkpoint names no class but networks, optimizers and schedulers of ours or torch's.

    Weights and plain values run no code, but the hyperparameters among them are import paths of what is to be called.

    Args:
        path: The checkpoint's file, for the error.
        checkpoint: Its content.
        *given: Settings, such as those of the run it is of. What is named there may be named in the checkpoint too.

    Raises:
        InputError: If anything else is named; the first such is told.
    """
    known = {INSTANTIATOR} | {text for settings in given for text in _nodes(settings) if isinstance(text, str)}
    for key in HYPERPARAMETERS:
        for count, value in enumerate(_nodes(checkpoint.get(key, {}))):
            plain = (str, bool, int, float, NoneType, dict, list, tuple)
            if not isinstance(value, plain) or count > MOST_HYPERPARAMETERS:
                raise InputError(f"{path} was not loaded: its {key} hold more than names and numbers")
            if isinstance(value, str) and not (WORD.fullmatch(value) or value in known or _is_trusted(value)):
                raise InputError(
                    f"{path} was not loaded: it names {value:.100}, and could run code by it; if you trust it, name it "
                    "too, in --config or by a flag, or give it to load_from_checkpoint"
                )


def _nodes(value: Any) -> Iterator[Any]:
    """Walk through nested settings, each alias as often as it occurs: there is no end to that in a hostile one."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting += [part for key in reversed(value) for part in (value[key], _lower(key))]
        elif isinstance(value, (list, tuple)):
            waiting += reversed(value)


def _lower(key: Any) -> Any:
    return key.lower() if isinstance(key, str) else key  # an argument's name may have capitals, and is no class's


def _is_trusted(name: str) -> bool:
    """Return whether an import path is that of a network, an optimizer or a scheduler of ours or torch's."""
    module, _, attribute = name.rpartition(".")
    if not name.startswith(TRUSTED) or module not in sys.modules:
        return False
    found = getattr(sys.modules[module], attribute, None)
    return isinstance(found, type) and issubclass(found, TRUSTED_BASES) and found.__module__.startswith(TRUSTED)


def check_fits(path: Path, state_dict: dict[str, Any], model: nn.Module) -> None:
    """Check that a checkpoint's weights are for this network.

    Raises:
        InputError: If a weight is missing, unknown, or of another shape; the first such is named.
    """
    here = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    there = {name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise InputError(
                f"{path} is for another network: {name} is {there.get(name, 'missing')} there and "
                f"{here.get(name, 'unknown')} here"
            )
