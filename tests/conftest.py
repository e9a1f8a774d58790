"""Fixtures: real MNIST where it is found, tiny MNIST everywhere, and a check that tests leave nothing behind."""

import gzip
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from numpy.typing import NDArray

from mnist_lightning import MNIST
from mnist_lightning.data.mnist import IDXFile

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
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=20_000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """A folder with real MNIST, or skip."""
    for place in PLACES:
        if place and (Path(place) / "MNIST/raw/train-images-idx3-ubyte").exists():
            return Path(place).resolve()
    pytest.skip(f"needs real MNIST, in MNIST_LIGHTNING_DATA, ../shared/data or data/: found none in {PLACES}")


@pytest.fixture
def tiny_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Make MNIST a data set of 200 training and 50 test images, for this test; the four files' contents."""
    rng = np.random.default_rng(0)
    contents = {}
    files = {}
    for split, prefix, number in (("train", "train", 200), ("test", "t10k", 50)):
        labels = rng.integers(0, 10, number, np.uint8)
        images = rng.integers(0, 100, (number, 28, 28), np.uint8)
        images[np.arange(number), labels * 2] = 255  # a bright row says the digit
        pair = []
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            contents[name] = idx_bytes(array)
            pair.append(IDXFile(name, array.shape, hashlib.sha256(contents[name]).hexdigest()))
        files[split] = tuple(pair)
    monkeypatch.setattr(MNIST, "files", files)
    return contents


@pytest.fixture
def tiny_mnist(tiny_files: dict[str, bytes], tmp_path: Path) -> Path:
    """A ``data_dir`` with tiny MNIST."""
    raw = tmp_path / "tiny" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in tiny_files.items():
        (raw / name).write_bytes(content)
    return tmp_path / "tiny"


@pytest.fixture
def gzipped(tiny_files: dict[str, bytes]) -> dict[str, bytes]:
    """What a mirror of tiny MNIST serves."""
    return {f"{name}.gz": gzip.compress(content) for name, content in tiny_files.items()}


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


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with its content if it is a file."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}
