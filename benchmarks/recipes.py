"""Run recipes over seeds and print a row of the README's table for each: mean and standard deviation.

    python benchmarks/recipes.py --data_dir data

Each run is one `fit` and one `test`, in processes of their own. Nothing is chosen by the test figures. Kaggle's recipe
has no labels to test on, and runs on Kaggle's format written from MNIST (see kaggle_csv.py).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import kaggle_csv
import yaml

from mnist_lightning.data.base import DEFAULT_DATA_DIR

NAMES = ("mlp_32_16", "mlp_128", "kaggle", "default", "early_stopping", "fast")
RECIPES = [Path(f"configs/{name}.yaml") for name in NAMES]


def run(config: Path, seed: int, data_dir: str | None, labelled: bool) -> tuple[dict[str, Any], float | None]:
    """Train once, and test if there are labels; return the content of run.json and the test accuracy."""
    program = [sys.executable, "-m", "mnist_lightning"]
    with tempfile.TemporaryDirectory() as root:
        where = ["--trainer.default_root_dir", root]
        settings = ["--seed_everything", str(seed)] + (["--data.data_dir", data_dir] if data_dir else [])
        subprocess.run([*program, "fit", "--config", str(config), *settings, *where], check=True, stdout=sys.stderr)
        folder = Path(root) / "lightning_logs/version_0"
        record = json.loads((folder / "run.json").read_text())
        if not labelled:
            return record, None
        subprocess.run([*program, "test", *where], check=True, stdout=subprocess.DEVNULL)
        return record, json.loads((folder / "report/metrics.json").read_text())["accuracy"]


def percent(values: list[float]) -> str:
    """Format fractions as percent: mean ± sample standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2%} ± {spread:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, default=RECIPES, metavar="CONFIG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44, 45, 46], metavar="SEED")
    parser.add_argument("--data_dir", help="folder with MNIST; the recipe's own by default")
    args = parser.parse_args()

    rows = []
    for config in args.configs:
        data = yaml.safe_load(config.read_text()).get("data", {})
        labelled = data.get("class_path") != "mnist_lightning.Kaggle"
        validation, test, seconds = [], [], []
        with tempfile.TemporaryDirectory() as csv_dir:
            if not labelled:
                kaggle_csv.write(args.data_dir or DEFAULT_DATA_DIR, Path(csv_dir))
            for seed in args.seeds:
                record, accuracy = run(config, seed, args.data_dir if labelled else csv_dir, labelled)
                validation.append(record["best_val_acc"])
                seconds.append(record["fit_seconds"])
                if accuracy is not None:
                    test.append(accuracy)
                tested = "" if accuracy is None else f"test {accuracy:.2%}, "
                print(f"{config} seed {seed}: validation {validation[-1]:.2%}, {tested}{seconds[-1]:.1f} s", flush=True)
        tested = percent(test) if test else "-"
        rows.append(f"| {config.stem} | {percent(validation)} | {tested} | {statistics.median(seconds):.1f} |")
    print(f"\n| recipe, {len(args.seeds)} seeds | validation | test | fit, median s |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
