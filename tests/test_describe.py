"""The verb `describe`, from the arguments to the files."""

import json
from pathlib import Path

import numpy as np
import pytest

from mnist_lightning import UCIDigits
from mnist_lightning.cli import main

pytestmark = pytest.mark.usefixtures("folder")

FILES = {"description.json", "digit_counts.png", "samples.png", "mean_digits.png"}


def test_describe_prints_and_draws_what_the_data_module_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--data", "UCIDigits"]) == 0
    out = capsys.readouterr().out
    written = Path("lightning_logs/describe_UCIDigits")
    assert {path.name for path in written.iterdir()} == FILES
    splits = json.loads((written / "description.json").read_text())
    assert {name: split["num_examples"] for name, split in splits.items()} == {
        "training": 1150,
        "validation": 287,
        "test": 360,
    }
    images, labels = UCIDigits().load("test")
    assert splits["test"]["num_per_digit"] == np.bincount(labels).tolist()
    assert splits["test"]["pixel_mean"] == pytest.approx((images / 255).mean(), abs=1e-12)
    assert splits["test"]["pixel_std"] == pytest.approx((images / 255).std(), abs=1e-12)
    assert splits["test"]["always_zero"] == (images == 0).all(axis=0).mean()
    both = np.array(splits["training"]["num_per_digit"]) + splits["validation"]["num_per_digit"]
    assert both.tolist() == np.bincount(UCIDigits().load("train")[1]).tolist()
    assert out.startswith("UCIDigits\n")
    std = next(line for line in out.splitlines() if line.startswith("pixel std"))
    assert std.split()[2:] == [f"{splits[name]['pixel_std']:.4f}" for name in ("training", "validation", "test")]


def test_a_recipes_or_a_runs_configuration_says_which_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  max_epochs: 3\ndata:\n  class_path: UCIDigits\n  init_args:\n    val_fraction: 0.5\n"
    )
    assert main(["describe", "--config", str(config), "--output", "there"]) == 0
    assert {path.name for path in Path("there").iterdir()} == FILES
    splits = json.loads(Path("there/description.json").read_text())
    assert [splits[name]["num_examples"] for name in ("training", "validation")] == [719, 718]
    assert "there/ with description.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "validation"),
    [
        (["--data.val_fraction", "0.1", "--config", "half.yaml"], 718),
        (["--config=half.yaml", "--data.val_fraction", "0.1"], 144),
    ],
)
def test_the_last_setting_wins(args: list[str], validation: int) -> None:
    Path("half.yaml").write_text("data:\n  class_path: UCIDigits\n  init_args:\n    val_fraction: 0.5\n")
    assert main(["describe", "--data", "UCIDigits", *args, "--output", "there"]) == 0
    splits = json.loads(Path("there/description.json").read_text())
    assert splits["validation"]["num_examples"] == validation


def test_images_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = ",".join(f"pixel{i}" for i in range(784))
    rows = [",".join([str(digit), *[str(25 * digit)] * 784]) for digit in range(10)]
    (tmp_path / "train.csv").write_text("\n".join([f"label,{header}", *rows]))
    (tmp_path / "test.csv").write_text("\n".join([header, *(row[2:] for row in rows[:4])]))
    assert main(["describe", "--data", "Kaggle", "--data.data_dir", str(tmp_path)]) == 0
    splits = json.loads(Path("lightning_logs/describe_Kaggle/description.json").read_text())
    assert splits["test"]["num_per_digit"] is None
    assert (splits["test"]["num_examples"], splits["test"]["pixel_max"]) == (4, 75)
    digit_0 = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("digit 0"))
    assert digit_0.endswith("-")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "Nope"], "--data: no class is named Nope"),
        (["--trainer.max_epochs", "3"], "unrecognized arguments: --trainer.max_epochs 3"),
        (["--config", "nope.yaml"], "no configuration file at nope.yaml"),
        (["--config", "file"], "no data settings in file: give --config a recipe or a run's config.yaml"),
        (["--data.augmentation", "torch.nn.Dropout", "--data.augmentation.p", "2"], "dropout probability has to be"),
        (["--data", "Kaggle", "--data.data_dir", "nope"], "nope/train.csv is missing"),
        (["--data", "UCIDigits", "--output", "file/x"], "cannot write to file/x: Not a directory; choose another"),
    ],
)
def test_bad_input(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert main(["describe", *args]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert [path.name for path in Path().iterdir()] == ["file"]
