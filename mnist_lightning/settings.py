"""What the settings in a ``config.yaml`` mean, to compare those of two runs; read without torch."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from mnist_lightning.files import FastLoader

# The seed, and settings that cannot change the result.
IGNORED = re.compile(
    r"seed_everything|seeds|name|ckpt_path|data\.(data_dir|mirrors|eval_batch_size)|"
    r"trainer\.(default_root_dir|logger|profiler|log_every_n_steps|num_sanity_val_steps|"
    r"model_registry|enable_\w+)"
)
# What a setting means that is missing or null, where that is not "off".
DEFAULTS: dict[str, Any] = {
    "data.folds": 0,
    "data.fold": 0,
    # Earlier configurations do not have these.
    "data.augmentation.coarse": 0,
    "data.augmentation.blur": 0,
    "data.augmentation.edges": 0,
    "data.augmentation.pale": 0,
    "data.augmentation.noise": 0,
    "trainer.max_epochs": 10,
    "trainer.max_steps": -1,
    "trainer.limit_train_batches": 1.0,
    "trainer.limit_val_batches": 1.0,
    "trainer.overfit_batches": 0,
}


def settings_in(config: str) -> dict[str, Any]:
    """Return the settings in a ``config.yaml`` that can change a result, by their dotted names.

    Sections that runs share are parsed once: that is what takes time. The seed is left out.
    """
    sections = [config]
    if not re.search(r"[&*]\w", config):  # an anchor may be used in another section
        sections = re.split(r"^(?=\w)", config, flags=re.MULTILINE)
    found: dict[str, Any] = {}
    for section in sections:
        found.update(_section(section))
    return found


@cache
def _section(text: str) -> list[tuple[str, Any]]:
    return list(_flatten(dict(yaml.load(text, FastLoader) or {})))


def _flatten(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting and its value. That of an object is its class, if ours without module."""
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield place, value
        return
    for key, part in value.items():
        if key == "class_path":
            yield place, re.sub(r"^(mnist_lightning|torch|lightning)\.(.*\.)?", "", str(part))
            continue
        inner = place if key == "init_args" else f"{place}.{key}".lstrip(".")
        if not IGNORED.fullmatch(inner):
            yield from _flatten(part, inner)


def meaning(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what settings mean, as texts.

    Those that are off are left out: an older configuration does not name them.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    every = DEFAULTS | given
    return {name: repr(value or 0) for name, value in every.items() if value is not False}


# Of a function in a setting that cannot be written, such as an optimizer that is a lambda.
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def difference(earlier: str, now: str, free: re.Pattern[str] = re.compile("(?!)")) -> str:
    """Return the first setting in which two contents of ``config.yaml`` differ; empty if none.

    Args:
        earlier: The one content.
        now: The other.
        free: The names of settings that may differ too.
    """
    was, becomes = settings_in(ADDRESS.sub("", earlier)), settings_in(ADDRESS.sub("", now))
    changed = {
        name
        for name, _ in meaning(was).items() ^ meaning(becomes).items()
        if not free.fullmatch(name)
    }
    name = next((name for name in was | becomes if name in changed), "")
    return name and f"{name} {was.get(name)}, now {becomes.get(name)}"
