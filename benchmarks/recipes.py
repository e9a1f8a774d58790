"""Train and test recipes over seeds, and print a table: mean accuracy, deviation, seconds.

    python benchmarks/recipes.py [CONFIG ...] [--seeds 42 43 44 45 46] [--data_dir data] [--folder
    DIR] [--all_images]

Nothing is chosen by the test accuracy. With --all_images each recipe is trained a second time,
without validation, on all training images. mlp_distilled has the cnn run of the first seed as its
teacher, and the ensemble is the cnn runs together: name cnn before them. Finished runs in DIR are
read, not repeated. Kaggle's test images have no labels, so that recipe gets none; its data are
MNIST in Kaggle's format (kaggle_csv.py).
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import kaggle_csv

from mnist_lightning import Run, load_run
from mnist_lightning.data.base import DEFAULT_DATA_DIR
from mnist_lightning.recipe import read
from mnist_lightning.report.text import mean_std
from mnist_lightning.studies.train import train_seeds

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = ("mlp_32_16", "mlp_128", "kaggle", "default", "early_stopping", "fast")
NAMES += ("cnn_fast", "cnn_robust", "cnn", "mlp_augmented", "mlp_distilled")


def test(run: Run) -> float:
    """Return the test accuracy, NaN without labels."""
    return run.test()["accuracy"] if run.data.has_test_labels else float("nan")


def percent(values: list[float]) -> str:
    """Format fractions as percent: mean and sample standard deviation."""
    return mean_std(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [CONFIGS / f"{name}.yaml" for name in NAMES]
    parser.add_argument("configs", nargs="*", type=Path, default=every, metavar="CONFIG")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[42, 43, 44, 45, 46], metavar="SEED"
    )
    parser.add_argument("--data_dir", help="folder with MNIST; the recipe's own by default")
    parser.add_argument(
        "--folder", type=Path, help="folder for the runs; a temporary one by default"
    )
    parser.add_argument("--all_images", action="store_true", help="train on all 60,000 images too")
    args = parser.parse_args()

    heading = f"recipe, {len(args.seeds)} seeds"
    lines = [f"| {heading} | validation | test | test, all images | fit, median s |"]
    lines += ["|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        logs = (args.folder or Path(scratch)).absolute() / "lightning_logs"
        for config in args.configs:
            stem, data_dir = config.stem, args.data_dir
            if stem == "kaggle":
                kaggle_csv.write(data_dir or DEFAULT_DATA_DIR, Path(scratch))
                data_dir = scratch
            flags = ["--config", str(config)]
            flags += ["--data.data_dir", data_dir] if data_dir else []
            tables: dict[str, list[list[float]]] = {"": []} | (
                {"_all": []} if args.all_images else {}
            )
            for kind, results in tables.items():
                teacher = (
                    ["--teacher", str(logs / f"cnn{kind}_{args.seeds[0]}")]
                    if stem == "mlp_distilled"
                    else []
                )
                own = flags + teacher + (["--data.val_fraction", "0"] if kind else [])
                shared = read(own).for_study()
                name = f"{stem}{kind}"
                for run in train_seeds(seeds=args.seeds, name=name, log_dir=logs, **shared):
                    record = run.record
                    results.append(
                        [record["best_val_acc"] or float("nan"), test(run), record["fit_seconds"]]
                    )
                    print(f"{run.folder.name}: validation, test, seconds {results[-1]}", flush=True)
            validation, tested, seconds = map(list, zip(*tables[""], strict=True))
            whole = percent([row[1] for row in tables["_all"]]) if args.all_images else "-"
            median = statistics.median(seconds)
            lines.append(
                f"| {stem} | {percent(validation)} | {percent(tested)} | {whole} | {median:.1f} |"
            )
            if stem == "cnn":
                runs = {
                    kind: load_run([logs / f"cnn{kind}_{seed}" for seed in args.seeds])
                    for kind in tables
                }
                whole = percent([test(runs["_all"])]) if args.all_images else "-"
                accuracy = runs[""].validate()["accuracy"]
                tested = percent([test(runs[""])])
                lines.append(f"| ensemble | {percent([accuracy])} | {tested} | {whole} | - |")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
