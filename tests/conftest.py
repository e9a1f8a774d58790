"""Fixtures: real MNIST where it is found, an empty folder to work in, and a check that tests leave nothing behind."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from mnist_lightning.errors import InputError

ROOT = Path(__file__).parent.parent
PLACES = (os.environ.get("MNIST_LIGHTNING_DATA"), ROOT / "../shared/data", ROOT / "data")

# Generated tests are the same each time; with HYPOTHESIS_PROFILE=thorough they are others, and many more.
set_hypothesis_home_dir(tempfile.gettempdir())
settings.register_profile(
    "quick",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=20_000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """A folder with real MNIST, or skip."""
    for place in PLACES:
        if place and (Path(place) / "MNIST/raw/train-images-idx3-ubyte").exists():
            return Path(place).resolve()
    pytest.skip(f"needs real MNIST, in MNIST_LIGHTNING_DATA, ../shared/data or data/: found none in {PLACES}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, worked in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = set(ROOT.iterdir()) | set((ROOT / "lightning_logs").iterdir())
    yield
    after = set(ROOT.iterdir()) | set((ROOT / "lightning_logs").iterdir())
    assert after - before <= {ROOT / ".pytest_cache"}, "the test left files in the project"


def files_in(folder: Path) -> set[str]:
    """The path of every file below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def attempt(call: Callable[..., object], *args: object) -> Any:
    """What a call returns, or None if it refuses with an InputError of one line; other errors fail the test."""
    try:
        return call(*args)
    except InputError as error:
        message = str(error)
    assert message.isprintable()
    return None
