"""Comparing runs: the groups and their table, whether a difference could be chance, the page."""

import csv
import html
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import attempt, refusal
from scipy import stats

from mnist_lightning import MLP, DigitClassifier, UCIDigits
from mnist_lightning.studies.compare import compare, compare_table, write_comparison
from mnist_lightning.studies.contrast import bootstrap, contrast
from mnist_lightning.training.run import Predictions, Run


def write(
    name: str, seed: int, best: float | None, test: float | None = None, **config: Any
) -> None:
    """Write a run folder with some sections of config.yaml replaced."""
    folder = Path("lightning_logs", name)
    (folder / "report").mkdir(parents=True)
    record = {
        "seed": seed,
        "best_val_acc": best,
        "fit_seconds": 10.0 + seed,
        "num_parameters": 1000,
    }
    (folder / "run.json").write_text(json.dumps(record))
    net = {"class_path": "mnist_lightning.MLP", "init_args": {"dropout": 0.2}}
    trainer = {"callbacks": None, "enable_progress_bar": seed > 42, "default_root_dir": name}
    sections = {"seed_everything": seed, "trainer": trainer, "model": {"net": net}} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(sections, sort_keys=False))
    (folder / "report/metrics.json").write_text(json.dumps({"accuracy": test}))


@pytest.fixture
def groups(folder: Path) -> list[dict[str, Any]]:
    """Three seeds; another network; a callback without validation; and four that are left out."""
    for name, seed, best in [("mlp_42", 42, 0.97), ("mlp_43", 43, 0.98), ("mlp_44", 44, 0.99)]:
        write(name, seed, best, 0.96 if seed == 42 else None)
    cnn = {"class_path": "mnist_lightning.networks.CNN", "init_args": {"dropout": 0.5, "width": 32}}
    write("wide", 42, 0.99, model={"net": cnn}, data={"fold": 0})
    timer = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": 5}}
    write("timed", 42, None, 0.5, trainer={"callbacks": [timer]})
    for number, text in enumerate(["{", '{"finished": false}', "[x]", "x: &x {y: *x}"]):
        write(f"bad{number}", 42, 0.1)
        Path(f"lightning_logs/bad{number}", "run.json" if number < 2 else "config.yaml").write_text(
            text
        )
    return compare()


def test_groups(groups: list[dict[str, Any]]) -> None:
    wide, mlp, timed = groups
    assert [group["name"] for group in groups] == ["wide", "mlp", "timed"]
    assert mlp["runs"] == [f"lightning_logs/mlp_{seed}" for seed in (42, 43, 44)]
    assert [mlp[name] for name in ("n", "test", "test_std")] == [3, 0.96, None]
    assert (mlp["validation"], mlp["validation_std"]) == pytest.approx(
        (0.98, np.std([0.97, 0.98, 0.99], ddof=1))
    )
    assert [timed["validation"], wide["validation_std"], wide["test"]] == [None, None, None]
    assert wide["settings"] == {"net": "CNN", "dropout": 0.5, "width": 32}
    assert timed["settings"] == {
        "net": "MLP",
        "dropout": 0.2,
        "callbacks.0": "Timer",
        "duration": 5,
    }
    head, wide_line, mlp_line = (
        " ".join(line.split()) for line in compare_table(groups).splitlines()[:3]
    )
    # The width follows from the network, which others do not have; so does the timer's duration.
    assert head == "name runs validation test seconds parameters net dropout callbacks.0"
    assert wide_line == "wide 1 99.00% - 52.0 1,000 CNN 0.5 -"
    assert mlp_line == "mlp 3 98.00 ± 1.00% 96.00% 53.0 1,000 MLP 0.2 -"
    alone = wide | {"settings": {}, "telling": []}
    assert compare(["lightning_logs/wide"] * 2) == [alone]
    assert attempt(compare, ["lightning_logs/none"]) is None
    code = "import sys, mnist_lightning.studies.compare as it; it.compare(); "
    code += "sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.usefixtures("folder")
def test_settings_that_are_not_the_default_separate_groups() -> None:
    """Zeros, false and empty lists; but not what other versions write of the same default."""

    def setting(name: str, seed: int = 42, **config: Any) -> None:
        arguments = config.pop("arguments", {"dropout": 0.2})
        net = {"class_path": "mnist_lightning.MLP", "init_args": arguments}
        data = {"train_size": 9} | config.pop("data", {})
        write(name, seed, 0.9, model={"net": net}, data=data, **config)

    strengths = {"rotation": 10.0}
    augmentation = {"class_path": "mnist_lightning.Augmentation", "init_args": strengths}
    setting("bent_1", data={"augmentation": augmentation})
    noiseless = strengths | {"noise": 0.0, "blur": 0.0, "edges": 0.0, "pale": 0, "coarse": 0.0}
    setting("bent_2", data={"augmentation": augmentation | {"init_args": noiseless}})
    setting("old", trainer={})
    usual = {"limit_val_batches": None, "limit_train_batches": 1.0, "max_steps": -1}
    new = usual | {"overfit_batches": 0.0, "x": False}
    setting("new", 43, trainer=new, data={"fold": 0, "folds": 0, "y": None})
    for number, batches in enumerate([0, 0.0, 1]):
        setting(f"val_{number}", trainer={"limit_val_batches": batches})
    short = {"max_steps": 0, "limit_train_batches": 0, "overfit_batches": 1}
    for number, (name, value) in enumerate(short.items()):
        setting(f"short_{number}", trainer={name: value})
    for number, arguments in enumerate([{"dropout": 0}, {}, {"dropout": 0.2, "hidden_sizes": []}]):
        setting(f"net_{number}", arguments=arguments)
    groups = [sorted(Path(run).name for run in group["runs"]) for group in compare()]
    alone = [["net_0"], ["net_1"], ["net_2"], ["short_0"], ["short_1"], ["short_2"], ["val_2"]]
    assert sorted(groups) == sorted(
        [["new", "old"], ["bent_1", "bent_2"], ["val_0", "val_1"], *alone]
    )
    named = {group["name"]: group["settings"].get("limit_val_batches") for group in compare()}
    assert (named["val"], named["val_2"]) == (0, 1)


@pytest.mark.usefixtures("folder")
def test_many_groups(tmp_path: Path) -> None:
    """A table for each data set, a column for each setting that tells something."""

    def optimizer(name: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": f"torch.optim.{name}", "init_args": arguments}

    mnist, own = ({"class_path": f"mnist_lightning.{name}"} for name in ("MNIST", "Drawings"))
    net = {"class_path": "mnist_lightning.MLP", "init_args": {"hidden_sizes": [9] * 12}}
    adam = {"eps": 1e-8, "betas": [0.9, 0.999]}
    for number in range(6):
        made = optimizer("Adam", lr=0.001 * (1 + number), **adam)
        write(
            f"adam_{number}",
            1,
            0.9 + 0.01 * number,
            model={"net": net, "optimizer": made},
            data=mnist,
        )
    made = optimizer("SGD", lr=0.1, momentum=0.9)
    write("sgd", 1, 0.99, model={"net": net, "optimizer": made}, data=mnist)
    for number, epsilon in enumerate((1e-8, 1e-4)):
        made = optimizer("Adam", lr=0.001, **adam | {"eps": epsilon})
        write(f"own_{number}", 1, 0.999, model={"net": net, "optimizer": made}, data=own)
    groups = compare()
    assert [group["name"] for group in groups][:2] == ["sgd", "adam_5"]
    assert [group["data"] for group in groups] == ["MNIST"] * 7 + ["Drawings"] * 2
    first, second = compare_table(groups).split("\n\n")
    assert first.splitlines()[0] == "MNIST"
    assert first.splitlines()[1].split()[6:] == ["optimizer", "lr"]
    assert first.splitlines()[2].split()[6:] == ["SGD", "0.1"]
    assert second.splitlines()[0] == "Drawings"
    assert second.splitlines()[1].split()[6:] == ["eps"]
    page = write_comparison(tmp_path / "page", groups).read_text()
    assert (page.count("<table"), page.count("betas")) == (2, 0)
    written = list(csv.DictReader((tmp_path / "page/compare.csv").open()))
    assert (written[0]["momentum"], written[1]["betas"]) == ("0.9", "[0.9, 0.999]")


@pytest.mark.usefixtures("folder")
def test_the_terminal_shows_what_fits() -> None:
    """Long values are cut, and what does not fit is named."""
    for number in range(2):
        arguments = {"dropout": number, "hidden_sizes": [100 + number] * 9}
        net = {"class_path": "mnist_lightning.MLP", "init_args": arguments}
        more = {f"a_setting_with_a_long_name_{place}": number for place in range(5)}
        write(f"run_{number}", 1, 0.9, model={"net": net}, trainer=more)
    lines = compare_table(compare()).splitlines()
    assert max(map(len, lines[:3])) <= 120
    assert "[100, 100, 100, 1..." in "".join(lines)
    assert lines[3].startswith("Not shown: a_setting_with_a_long_name_")


def answering(name: str, wrong: range, **data: Any) -> Run:
    """A run that answers the images of UCI's digits correctly but for a range."""
    run = Run(Path(name), None, DigitClassifier(MLP([2])), UCIDigits(**data))
    run.data.setup()
    labels = {
        len(digits): digits.arrays()[1]
        for digits in (run.data.val_set, run.data.test_set)
        if digits
    }

    def predict(images: Any) -> Predictions:
        digits = (labels[len(images)] + np.isin(np.arange(len(images)), wrong)) % 10
        return Predictions(digits, digits, np.eye(10, dtype=np.float32)[digits])

    run.predict = predict  # type: ignore[method-assign, assignment]
    return run


@pytest.mark.parametrize(
    ("only_a", "only_b", "p", "verdict"),  # p is twice the probability of as few heads of n coins
    [
        (
            8,
            2,
            2 * (1 + 10 + 45) / 2**10,
            "This could be chance: McNemar p = 0.109 on 10 images where one is wrong.",
        ),
        (
            1,
            9,
            2 * (1 + 10) / 2**10,
            "This is unlikely to be chance, though more seeds may change it: McNemar p = 0.021",
        ),
        (
            0,
            20,
            2 / 2**20,
            "McNemar p < 0.001 on 20 images where one is wrong. The 95% interval of the",
        ),
        (
            0,
            0,
            1,
            "same validation accuracy. This could be chance: McNemar p = 1.000 on 0 images",
        ),
    ],
)
def test_mcnemar(only_a: int, only_b: int, p: float, verdict: str) -> None:
    a, b = answering("runs/a", range(only_b)), answering("runs/b", range(only_b, only_b + only_a))
    found = contrast([a], [b])
    assert (found.only, found.rows.tolist()) == ((only_a, only_b), [*range(only_a + only_b)])
    assert (found.p_value, found.accuracies[0] - found.accuracies[1]) == pytest.approx(
        (p, (only_a - only_b) / 287)
    )
    assert verdict in found.sentence
    assert only_a == only_b or found.sentence.startswith(
        "a is better" if only_a > only_b else "b is better than a by "
    )
    with suppress(ImportError):  # a second reference, where statsmodels is installed
        from statsmodels.stats.contingency_tables import mcnemar

        assert found.p_value == pytest.approx(
            mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue
        )


def test_groups_of_runs(tmp_path: Path, groups: list[dict[str, Any]]) -> None:
    a = [answering(f"runs/a_{number}", range(10 * number, 10 * number + 15)) for number in range(4)]
    found = contrast(a, [answering(f"runs/b_{number}", range(30 + number)) for number in range(3)])
    assert found.accuracies == pytest.approx((1 - 15 / 287, 1 - 31 / 287))
    assert (found.answers[1] != a[0].data.val_set.arrays()[1]).sum() == 31  # type: ignore[union-attr]  # two of three
    low, high = (f"{100 * end:.2f}" for end in found.interval)
    assert found.sentence == (
        "a is better than b by 5.57 points of validation accuracy. This is unlikely to be chance, "
        "though more seeds may change it: the 95% interval of the difference between the mean "
        f"accuracies is {low} to {high}. Another question is whether the averaged answers differ: "
        "McNemar p < 0.001 on 31 images where one is wrong."
    )
    page = write_comparison(tmp_path / "page", groups, found)
    assert (found.sentence in html.unescape(page.read_text()), page.read_text().count("<img")) == (
        True,
        len(found.rows),
    )
    row = list(csv.DictReader(page.with_name("compare.csv").open()))[1]
    assert [row[name] for name in ("name", "net", "n", "test_std")] == ["mlp", "MLP", "3", ""]


def test_groups_whose_averaged_answers_differ_though_their_means_do_not() -> None:
    """Each run of b is wrong elsewhere, so its ensemble is right; the mean accuracies are equal."""
    a = [answering(f"runs/a_{number}", range(30)) for number in range(5)]
    b = [answering(f"runs/b_{number}", range(30 * number, 30 * number + 30)) for number in range(5)]
    found = contrast(a, b)
    assert (found.p_value < 0.001, found.could_be_chance, found.only) == (True, True, (0, 30))
    assert (
        "have the same validation accuracy. This could be chance: the 95% interval of"
        in found.sentence
    )


def test_other_images() -> None:
    a, b = answering("a", range(5)), answering("b", range(0), split_seed=1)
    assert attempt(contrast, [a], [b]) is None
    assert "split must be validation or test, got tset" in refusal(contrast, [a], [b], "tset")
    assert "at least one run, got 1 and 0" in refusal(contrast, [a], [])
    assert contrast([a], [b], "test").accuracies == pytest.approx((355 / 360, 1))
    assert attempt(contrast, [answering("c", range(0), val_fraction=0)], [a]) is None


def test_bootstrap() -> None:
    """One run a side: as SciPy's. Several: the variances of images and of means of runs add up."""
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 1, 3000)) < [[[0.97]], [[0.96]]]
    reference = stats.bootstrap(
        (a[0].astype(float) - b[0],), np.mean, method="percentile", rng=generator
    )
    assert bootstrap(a, b) == pytest.approx([*reference.confidence_interval], abs=1e-3)
    a, b = (
        generator.permutation(3000) < np.array(shares)[:, None] * 3000
        for shares in ([0.6, 0.7], [0.8, 0.84, 0.9])
    )
    variance = sum(side.mean(axis=1).var(ddof=1) / len(side) for side in (a, b))
    variance += (a.mean(axis=0) - b.mean(axis=0)).var() / 3000
    low, high = bootstrap(a, b)
    assert (low + high) / 2 == pytest.approx(a.mean() - b.mean(), abs=0.01)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(variance), rel=0.2)
