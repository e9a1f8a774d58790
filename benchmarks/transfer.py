"""Draw learning curves on UCI's digits: a network trained on MNIST, and one from scratch.

    python benchmarks/transfer.py RUN [--name transfer] [--sizes 10 30 100 300 1149] [--figure
    transfer.png]

RUN is a run of configs/cnn.yaml. Each point is the mean of five folds of UCI's 1,437 training
images, with the last weights of training; the test images are not read. On one thread of a CPU it
takes about 20 minutes.
"""

import argparse
from pathlib import Path

from mnist_lightning.recipe import read
from mnist_lightning.report.figures import save
from mnist_lightning.studies.crossval import learning_curve
from mnist_lightning.studies.crossval_report import curve_table, draw_curves

CONFIG = Path(__file__).parent.parent / "configs/transfer_uci.yaml"
# The first three convolutions; chosen, like the learning rate, with another split.
FROZEN = "layers.[0-9]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--name", default="transfer")
    parser.add_argument("--sizes", nargs="+", type=int, default=[10, 30, 100, 300, 1149])
    parser.add_argument("--figure", type=Path, default=Path("transfer.png"))
    args = parser.parse_args()
    starts = {"from MNIST": ["--init_from", args.run, "--freeze", FROZEN], "from scratch": []}
    curves = {}
    for number, (kind, flags) in enumerate(starts.items()):
        shared = read(["--config", str(CONFIG), *flags])
        given = {"name": f"{args.name}_{number}", "seed": shared.seed, "stratified": True}
        curves[kind] = learning_curve(args.sizes, **given, **shared.for_study())
    save(draw_curves(curves), args.figure)
    for name, curve in curves.items():
        print(f"{name}\n{curve_table(curve)}\n")


if __name__ == "__main__":
    main()
