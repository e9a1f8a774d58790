"""What all tests share: real MNIST, a folder to work in, a trained run, and what a refusal is."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from mnist_lightning.errors import InputError

ROOT = Path(__file__).parent.parent
PLACES = (os.environ.get("MNIST_LIGHTNING_DATA"), ROOT / "../shared/data", ROOT / "data")

# Generated tests are the same each time; with HYPOTHESIS_PROFILE=thorough, others and many more.
set_hypothesis_home_dir(tempfile.gettempdir())
settings.register_profile(
    "quick",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "thorough", settings.get_profile("quick"), max_examples=20_000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """A folder with real MNIST, or skip."""
    for place in PLACES:
        if place and (Path(place) / "MNIST/raw/train-images-idx3-ubyte").exists():
            return Path(place).resolve()
    pytest.skip(f"needs real MNIST, in MNIST_LIGHTNING_DATA or data/: found none in {PLACES}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, worked in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is trained once: two epochs of MLP on UCIDigits. Only read it."""
    from mnist_lightning import MLP, DigitClassifier, UCIDigits, fit  # torch: not for every test

    log_dir = tmp_path_factory.mktemp("trained")
    run = fit(
        lambda: DigitClassifier(MLP()), UCIDigits(), log_dir=log_dir, name="first", max_epochs=2
    )
    return run.folder


@pytest.fixture
def first(trained: Path, folder: Path) -> Path:
    """A copy of the trained run in the folder that is worked in: ``lightning_logs/first``."""
    return Path(shutil.copytree(trained, Path("lightning_logs/first")))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = set(ROOT.iterdir()) | set((ROOT / "lightning_logs").iterdir())
    yield
    after = set(ROOT.iterdir()) | set((ROOT / "lightning_logs").iterdir())
    assert after - before <= {ROOT / ".pytest_cache"}, "the test left files in the project"


def files_in(folder: Path) -> set[str]:
    """The path of every file below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file that was cut, or with bytes changed or inserted: for the fuzz tests of readers."""
    file = bytearray(content[: draw(st.none() | st.integers(0, len(content)))])
    for _ in range(draw(st.integers(0, 6))):
        # Often at the start, where headers are.
        at = draw(st.integers(0, 20) | st.integers(0, len(file)))
        new = draw(st.binary(max_size=4) | st.sampled_from([b'"', b",", b"\n"]))
        file[at : at + draw(st.integers(0, 4))] = new
    return bytes(file)


def attempt(call: Callable[..., object], *args: object) -> Any:
    """What a call returns, or None if it refuses in one line; any other error fails the test."""
    try:
        return call(*args)
    except InputError as error:
        message = str(error)
    assert message.isprintable()
    return None


def refusal(call: Callable[..., object], *args: object, **given: object) -> str:
    """The one line of the InputError that a call raises."""
    with pytest.raises(InputError) as error:
        call(*args, **given)
    assert str(error.value).isprintable()
    return str(error.value)


def refused_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which the command line refuses words, with exit code 2."""
    from mnist_lightning.cli.main import main  # here, so that a test may import it in another way

    capsys.readouterr()
    code = main(words)
    lines = []
    for line in capsys.readouterr().err.splitlines():
        if "error" in line or not line.startswith(" "):
            lines.append(line)
    assert (code, len(lines)) == (2, 1), lines
    prefix = "python -m mnist_lightning: error: "
    assert lines[0].startswith(prefix)
    return lines[0].removeprefix(prefix)
