"""Train and test recipes over seeds, and print a table: accuracy as mean and standard deviation, and seconds.

    python benchmarks/recipes.py [CONFIG ...] [--seeds 42 43 44 45 46] [--data_dir data]

Each fit is a process of its own. Nothing is chosen by the test accuracy. Kaggle's test images have no labels, so that
recipe gets none; its data are MNIST in Kaggle's format (see kaggle_csv.py).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import kaggle_csv
import yaml

from mnist_lightning import load_run
from mnist_lightning.data.base import DEFAULT_DATA_DIR

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = [CONFIGS / f"{name}.yaml" for name in ("mlp_32_16", "mlp_128", "kaggle", "default", "early_stopping", "fast")]


def run(config: Path, seed: int, data_dir: str | None, folder: str) -> tuple[float, float, float]:
    """Train and test once; return validation accuracy, test accuracy (NaN without labels), and seconds."""
    command = [sys.executable, "-m", "mnist_lightning", "fit", "--config", str(config), "--seed_everything", str(seed)]
    command += ["--trainer.default_root_dir", folder] + (["--data.data_dir", data_dir] if data_dir else [])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    trained = load_run(log_dir=Path(folder) / "lightning_logs")
    accuracy = trained.test()["accuracy"] if trained.data.has_test_labels else float("nan")
    return trained.record["best_val_acc"], accuracy, trained.record["fit_seconds"]


def percent(values: tuple[float, ...]) -> str:
    """Format fractions as percent: mean and sample standard deviation."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}%"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, default=RECIPES, metavar="CONFIG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44, 45, 46], metavar="SEED")
    parser.add_argument("--data_dir", help="folder with MNIST; the recipe's own by default")
    args = parser.parse_args()

    lines = [f"| recipe, {len(args.seeds)} seeds | validation | test | fit, median s |", "|---|---|---|---|"]
    for config in args.configs:
        is_kaggle = yaml.safe_load(config.read_text())["data"]["class_path"] == "mnist_lightning.Kaggle"
        results = []
        with tempfile.TemporaryDirectory() as csv_dir:
            if is_kaggle:
                kaggle_csv.write(args.data_dir or DEFAULT_DATA_DIR, Path(csv_dir))
            for seed in args.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    results.append(run(config, seed, csv_dir if is_kaggle else args.data_dir, folder))
                print(f"{config.stem}, seed {seed}: validation, test, seconds {results[-1]}", flush=True)
        validation, test, seconds = zip(*results, strict=True)
        tested = "-" if is_kaggle else percent(test)
        lines.append(f"| {config.stem} | {percent(validation)} | {tested} | {statistics.median(seconds):.1f} |")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
