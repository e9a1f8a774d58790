"""Train the default recipe with this project and with what one would use instead.

In turn on one machine.

    python benchmarks/speed.py [--data_dir data] [--peers_python PYTHON] [--old PATH] [--output
    JSON] [--plot PNG]

Each round trains every row once, in a process of its own and with another seed. "fit" is the time
of training with a validation pass each epoch, without imports and loading data. The peers are in
peers/. Keras and JAX need `pip install tensorflow jax optax keras`, best in an environment of their
own, whose interpreter is PYTHON. With --old, `fit` of another checkout of this project runs in turn
too. A row on one thread is marked 1, one on all cores "all". Test accuracy is that of the last
epoch; for `fit`, that of the epoch with the best validation accuracy.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import measure

from mnist_lightning.report.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
FIRST_SEED = 42


class Row(NamedTuple):
    """A row of the table: the command ``fit`` with a config, or a script in peers/."""

    label: str
    threads: str
    config: str = ""
    checkout: Path = ROOT
    script: str = ""
    packages: Sequence[
        str
    ] = ()  # those of --peers_python; the other scripts run where mnist_lightning does
    environment: Mapping[str, str] = {}

    @property
    def is_peer(self) -> bool:
        """Whether it is not this project."""
        return self.script not in ("", "library.py")


KERAS = "keras_recipe.py"
ROWS = {
    "fit": Row("`fit`, everything on", "1", config="default"),
    "library": Row("`fit` in Python, no logger or checkpoint", "1", script="library.py"),
    "fast": Row("`fit --config configs/fast.yaml`", "1", config="fast"),
    "jax-scan": Row(
        "JAX, one `lax.scan` per epoch", "all", script="jax_scan.py", packages=("jax", "optax")
    ),
    "keras-jax": Row(
        "Keras on JAX", "all", "", ROOT, KERAS, ("keras", "jax"), {"KERAS_BACKEND": "jax"}
    ),
    "torch-loop": Row("plain torch loop", "all", script="torch_loop.py"),
    "torch-loop-flushed": Row(
        "plain torch loop, denormals flushed",
        "all",
        script="torch_loop.py",
        environment={"FLUSH_DENORMALS": "1"},
    ),
    "keras-tensorflow": Row(
        "Keras on TensorFlow",
        "all",
        "",
        ROOT,
        KERAS,
        ("keras", "tensorflow"),
        {"KERAS_BACKEND": "tensorflow"},
    ),
    "lightning-docs": Row("Lightning as its docs teach it", "all", script="lightning_docs.py"),
}
OLD = ("fit", "fast")  # the rows that --old repeats
REFERENCES = {
    "keras-tensorflow": "/ Keras TF",
    "keras-jax": "/ Keras JAX",
    "torch-loop": "/ torch loop",
}


def installed(python: str, packages: Sequence[str]) -> dict[str, str] | None:
    """Return the packages' versions, or None if one is missing."""
    program = "import json, sys; from importlib.metadata import version; "
    program += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def run_fit(row: Row, data_dir: str, epochs: int | None, seed: int) -> dict[str, float]:
    """Run ``fit`` and ``test`` in a new folder, which is deleted."""
    settings = [
        "--config",
        str(row.checkout / f"configs/{row.config}.yaml"),
        "--data.data_dir",
        data_dir,
    ]
    settings += ["--seed_everything", str(seed)] + (
        ["--trainer.max_epochs", str(epochs)] if epochs else []
    )
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-m", "mnist_lightning"]
        environment = {"PYTHONPATH": str(row.checkout)}
        done = measure.run([*program, "fit", *settings], environment, folder)
        measure.run([*program, "test"], environment, folder)
        run = Path(folder) / "lightning_logs/version_0"
        seconds = json.loads((run / "run.json").read_text())["fit_seconds"]
        accuracy = json.loads((run / "report/metrics.json").read_text())["accuracy"]
    return {
        "fit_seconds": seconds,
        "test_accuracy": accuracy,
        "peak_mb": done.peak_mb,
        "seconds": done.seconds,
    }


def run_script(
    row: Row, python: str, data_dir: str, epochs: int | None, seed: int
) -> dict[str, float]:
    """Run a script in peers/."""
    command = [
        python,
        str(ROOT / "benchmarks/peers" / row.script),
        data_dir,
        str(epochs or 10),
        str(seed),
    ]
    done = measure.run(command, row.environment)
    result = json.loads(re.findall(r'\{"fit_seconds".*\}', done.output)[-1])
    return {**result, "peak_mb": done.peak_mb, "seconds": done.seconds}


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return each row's figures over its runs, which name it in ``row``."""
    summary: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(run["row"] for run in runs):
        mine = {
            key: [run[key] for run in runs if run["row"] == name] for key in runs[0] if key != "row"
        }
        seconds = mine["fit_seconds"]
        summary[name] = {
            "median": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
        }
        summary[name] |= {"accuracy": statistics.mean(mine["test_accuracy"])}
        summary[name] |= {key: statistics.median(mine[key]) for key in ("peak_mb", "seconds")}
    for row in summary.values():
        row |= {
            f"to_{name}": row["median"] / summary[name]["median"]
            for name in REFERENCES
            if name in summary
        }
    return summary


def comparison(rows: Mapping[str, Row], summary: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table, and how ``fit`` compares with the old checkout's."""
    references = [name for name in REFERENCES if name in summary]
    cells = [
        [
            rows[name].label,
            rows[name].threads,
            f"{row['median']:.1f} ({row['min']:.1f}-{row['max']:.1f})",
            *(f"{row[f'to_{reference}']:.2f}" for reference in references),
            f"{row['accuracy']:.2%}",
            f"{row['peak_mb']:.0f}",
            f"{row['seconds']:.1f}",
        ]
        for name, row in summary.items()
    ]
    titles = [REFERENCES[name] for name in references]
    header = [
        "",
        "threads",
        "fit, s (range)",
        *titles,
        "test accuracy",
        "peak MB",
        "whole command, s",
    ]
    lines = [measure.table(header, cells)]
    for name in OLD:
        if f"{name}-old" in summary and name in summary:
            new, old = summary[name]["median"], summary[f"{name}-old"]["median"]
            lines.append(f"{rows[name].label}: new / old = {new / old:.2f}")
    return "\n\n".join(lines)


def bars(
    rows: Mapping[str, Row], summary: Mapping[str, Mapping[str, float]], caption: str
) -> "Figure":
    """Draw the medians, the fastest on top, with whiskers from the fastest to the slowest round."""
    from matplotlib.figure import Figure

    names = sorted(summary, key=lambda name: -summary[name]["median"])
    medians = [summary[name]["median"] for name in names]
    below = [summary[name]["median"] - summary[name]["min"] for name in names]
    above = [summary[name]["max"] - summary[name]["median"] for name in names]
    figure = Figure(figsize=(9, 1.4 + 0.42 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.barh(
        [rows[name].label.replace("`", "") for name in names],
        medians,
        color=["0.72" if rows[name].is_peer else "C0" for name in names],
        xerr=(below, above),
        error_kw={"ecolor": "0.25", "capsize": 3},
    )
    for place, name in enumerate(names):
        point = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{summary[name]['median']:.1f} s", (summary[name]["max"], place), **point)
    figure.suptitle("784-128-64-10 trained on MNIST: median, fastest and slowest round")
    axis.set_xlabel(f"seconds\n{caption}")
    axis.set_xlim(0, 1.12 * max(row["max"] for row in summary.values()))
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Not data.base's constant: importing it would count in every peak (see measure.run).
    data_dir = os.environ.get("MNIST_LIGHTNING_DATA", "data")
    parser.add_argument("--data_dir", default=data_dir, help="folder with MNIST")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="for a quick try; by default each recipe's own")
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument(
        "--peers_python", default=sys.executable, metavar="PYTHON", help="has TensorFlow and JAX"
    )
    parser.add_argument(
        "--old", type=Path, metavar="PATH", help="another checkout of this project to compare with"
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="where to write all figures")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw the medians")
    args = parser.parse_args()
    if shutil.which(args.peers_python) is None:
        parser.error(f"--peers_python must be an interpreter, got {args.peers_python}")

    about = {**measure.machine(), "rounds": args.rounds}
    rows: dict[str, Row] = {}
    for name in args.only:
        versions = installed(args.peers_python, ROWS[name].packages)
        if versions is None:
            print(
                f"{ROWS[name].label}: skipped, needs {' and '.join(ROWS[name].packages)}",
                flush=True,
            )
            continue
        about["versions"] |= versions
        rows[name] = ROWS[name]
        if args.old and name in OLD:
            rows[f"{name}-old"] = rows[name]._replace(
                label=f"{rows[name].label}, {args.old.name}",
                threads="-",
                checkout=args.old.resolve(),
            )

    runs: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for name, row in rows.items():
            given = (str(Path(args.data_dir).resolve()), args.epochs, FIRST_SEED + number)
            python = args.peers_python if row.packages else sys.executable
            result = run_script(row, python, *given) if row.script else run_fit(row, *given)
            runs.append({"row": name, "round": number, **result})
            took = f"{result['fit_seconds']:.1f} s, test {result['test_accuracy']:.2%}"
            print(f"round {number + 1} of {args.rounds}, {row.label}: {took}", flush=True)
        if args.output is not None:  # after each round, so that little is lost if one fails
            args.output.write_text(
                json.dumps({**about, "summary": summarise(runs), "runs": runs}, indent=2) + "\n"
            )
    summary = summarise(runs)
    print(f"\n{comparison(rows, summary)}")
    if args.plot is not None:
        where = f"{about['cpu']}, {about['cores']} cores, torch {about['versions']['torch']}"
        epochs, rounds = counted(args.epochs or 10, "epoch"), counted(args.rounds, "round")
        caption = f"{epochs}, fast.yaml its own; {rounds} in turn; {where}"
        bars(rows, summary, caption).savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
