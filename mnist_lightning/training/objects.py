"""``config.yaml`` of a run that Python began: the settings of its objects."""

import inspect
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from mnist_lightning.checkpoints import as_list, from_settings, is_plain, plain, to_settings
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.settings import ADDRESS


def config_of_objects(
    model: DigitClassifier,
    data: DigitDataModule,
    trainer_kwargs: Mapping[str, Any],
    *,
    seed: int,
    init_from: str | Path | None = None,
    teacher: Any = None,
    freeze: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return ``config.yaml`` of a run that Python began.

    What is not plain becomes a text that no parser accepts.

    Args:
        model: The classifier.
        data: The data module.
        trainer_kwargs: Arguments of Lightning's Trainer.
        seed: Arguments of ``fit``, as the others are.
        init_from: The start.
        teacher: The teachers.
        freeze: The layers that keep their weights.
    """
    settings = dict(model.hparams)
    defaults = inspect.signature(DigitClassifier).parameters
    for name in ("optimizer", "lr_scheduler"):
        value = getattr(model, name)
        if name not in settings and value is not defaults[name].default:
            made = _optimizer_settings(model) if name == "optimizer" else None
            settings[name] = made or f"<{_fingerprint(value)}>"
    trainer_kwargs = plain(dict(trainer_kwargs))
    trainer = {name: value for name, value in trainer_kwargs.items() if is_plain(value)}
    data_settings = to_settings(data, lossy=True)
    # A teacher is a run, a path, or a network.
    teachers = [f"{getattr(each, 'folder', each)!s:.200}" for each in as_list(teacher)]
    return {
        "seed_everything": plain(seed),
        "init_from": plain(init_from),
        "teacher": teachers or None,
        "freeze": as_list(freeze) or None,
        "model": settings,
        "data": data_settings,
        "trainer": trainer,
    }


def _optimizer_settings(model: DigitClassifier) -> dict[str, Any] | None:
    """Describe the optimizer that a function makes; None if it is not torch's, with plain values.

    So a run whose optimizer is a lambda can be repeated, and compared with others.
    """
    weights = list(model.net.parameters())
    try:
        optimizer = model.optimizer(weights)
    except Exception:  # the training refuses it, and says so
        return None
    group, *others = optimizer.param_groups
    cls, settings = type(optimizer), {}
    if (
        others
        or len(group["params"]) != len(weights)
        or getattr(torch.optim, cls.__name__, 0) != cls
    ):
        return None
    for name in [*inspect.signature(cls).parameters][1:]:
        value = plain(group.get(name, model))
        if not is_plain(value):
            return None
        settings[name] = list(value) if isinstance(value, tuple) else value
    return {"class_path": f"torch.optim.{cls.__name__}", "init_args": settings}


def callback_texts(callbacks: Sequence[Callback]) -> list[str]:
    """Return the class of each callback, with the arguments that it keeps in their attributes.

    Callbacks of this package are left out: they change no result.
    """
    texts = []
    for each in callbacks:
        if type(each).__module__.startswith("mnist_lightning."):
            continue
        settings = []
        for name in inspect.signature(type(each)).parameters:
            value = plain(getattr(each, name, None))
            if value is not None and is_plain(value):
                settings.append(f"{name}={value!r}")
        texts.append(f"{type(each).__name__}({', '.join(settings)})")
    return texts


def _fingerprint(function: Any) -> str:
    """Return a text for a function that no parser accepts; another code has another text."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)
    outside = inspect.getclosurevars(function).nonlocals
    content = ADDRESS.sub("", repr((code.co_code, code.co_names, code.co_consts, outside)))
    return f"function {function.__qualname__} {zlib.crc32(content.encode()):08x}"


def cannot_be_loaded(net: nn.Module, data: DigitDataModule) -> str:
    """Return why another process could not make a run's network or data again; empty if it can."""
    path = f"{type(net).__module__}.{type(net).__qualname__}"
    if path.startswith("__main__.") or "<locals>" in path:
        return f"{path} cannot be imported: move it to a file, or give load_run(folder, net=...)"
    hint = "keep each argument of {} in an attribute of its name, or give load_run(folder, {}=...)"
    try:
        with isolate_rng():
            from_settings(to_settings(net), trusted=True).load_state_dict(net.state_dict())
    except Exception:  # the class may raise anything
        return hint.format(path, "net")
    if to_settings(data) is None and data.augmentation is None:
        return hint.format(type(data).__name__, "data")
    return ""
