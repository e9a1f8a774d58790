"""Run recipes over seeds and print a row of the README's table for each: mean and standard deviation.

    python benchmarks/recipes.py --data_dir data configs/default.yaml

Each run is one `fit` and one `test`, in processes of their own. Nothing is chosen by the test figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(config: Path, seed: int, data_dir: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train and test once; return the contents of run.json and metrics.json."""
    program = [sys.executable, "-m", "mnist_lightning"]
    data = ["--data.data_dir", data_dir] if data_dir else []
    with tempfile.TemporaryDirectory() as root:
        where = ["--trainer.default_root_dir", root]
        fit = [*program, "fit", "--config", str(config), "--seed_everything", str(seed), *data, *where]
        for command in (fit, [*program, "test", *where]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        folder = Path(root) / "lightning_logs/version_0"
        return json.loads((folder / "run.json").read_text()), json.loads((folder / "report/metrics.json").read_text())


def percent(values: list[float]) -> str:
    """Format fractions as percent: mean ± sample standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2%} ± {spread:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, default=[Path("configs/default.yaml")], metavar="CONFIG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44, 45, 46], metavar="SEED")
    parser.add_argument("--data_dir", help="folder with the data; the recipe's own by default")
    args = parser.parse_args()

    rows = []
    for config in args.configs:
        validation, test, seconds = [], [], []
        for seed in args.seeds:
            record, metrics = run(config, seed, args.data_dir)
            validation.append(record["best_val_acc"])
            test.append(metrics["accuracy"])
            seconds.append(record["fit_seconds"])
            print(f"{config} seed {seed}: validation {validation[-1]:.2%}, test {test[-1]:.2%}, {seconds[-1]:.1f} s")
        rows.append(f"| {config.stem} | {percent(validation)} | {percent(test)} | {statistics.median(seconds):.1f} |")
    print(f"\n| recipe, {len(args.seeds)} seeds | validation | test | fit, median s |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
