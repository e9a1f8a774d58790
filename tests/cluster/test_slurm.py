"""The shipped batch script on a real SLURM cluster: two nodes, arrays, and jobs that are preempted and go on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from slurm import ENDED, Cluster, obstacle

from mnist_lightning.loggers import read_history

SCRIPT = str(ROOT / "configs/cluster/slurm.sh")
EPOCHS = 6
# Batches of one image, for epochs of seconds: they can be interrupted in the middle.
FIT = ("--data", "UCIDigits", "--data.batch_size", "1", "--trainer.max_epochs", str(EPOCHS))

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> str:
    """The number of a job that trained on two nodes, and nobody disturbed it."""
    job = cluster.submit("--nodes=2", SCRIPT, *FIT)
    cluster.wait_for_end(job)
    return job


def log(cluster: Cluster, job: str) -> str:
    return (cluster.folder / f"slurm-{job}.out").read_text()


def run_folder(cluster: Cluster, job: str) -> Path:
    (folder,) = (cluster.folder / "runs" / job / "lightning_logs").iterdir()
    return folder


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_a_job_trains_on_two_nodes(cluster: Cluster, undisturbed: str) -> None:
    run = run_folder(cluster, undisturbed)
    assert (record(run)["devices"], record(run)["epochs"], record(run)["seed"]) == (2, EPOCHS, 42)
    history = read_history(run / "metrics.csv")
    assert [int(row["epoch"]) for row in history] == list(range(EPOCHS))
    lines = log(cluster, undisturbed).splitlines()
    assert sum("Run folder: runs/" in line for line in lines) == 1, "one rank speaks"
    assert [line.split()[1] for line in lines if line.startswith("Epoch ")] == [str(epoch) for epoch in range(EPOCHS)]


def interrupt(cluster: Cluster, job: str, epoch: int, times: int, *command: str) -> None:
    """Interrupt a job for the ``times``-th time, early in the epoch after this one, and see it queued again."""

    def epoch_done() -> bool:
        histories = cluster.folder.glob(f"runs/{job}/lightning_logs/*/metrics.csv")
        return any(int(read_history(history)[-1]["epoch"]) >= epoch for history in histories)

    def queued_again() -> bool:
        found = cluster.job(job)
        assert found["JobState"] not in ENDED, f"job {job} ended\n{cluster.logs()}"
        return (found["JobState"], found["Restarts"]) == ("PENDING", str(times))

    cluster.wait(f"job {job} to train past epoch {epoch}", epoch_done, 120)
    cluster.run(*command)
    cluster.wait(f"job {job} to be queued again", queued_again)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # not in two minutes


def test_a_job_interrupted_twice_ends_as_if_undisturbed(cluster: Cluster, undisturbed: str) -> None:
    job = cluster.submit("--nodes=2", SCRIPT, *FIT)
    interrupt(cluster, job, 0, 1, "scancel", "--signal=USR1", job)  # as SLURM does before the time limit
    interrupt(cluster, job, 2, 2, "scontrol", "requeue", job)  # as another job's preemption does: SIGTERM
    cluster.wait_for_end(job)

    run, reference = run_folder(cluster, job), run_folder(cluster, undisturbed)
    assert (run / "metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes()
    for name in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert same(last(run)[name], last(reference)[name]), name
    assert log(cluster, job).count("Run folder: runs/") == 3, "the log is appended"


def test_an_array_is_a_run_for_each_seed(cluster: Cluster) -> None:
    array = cluster.submit("--array=1-3", SCRIPT, "--data", "UCIDigits", "--trainer.max_epochs", "1")
    for seed in (1, 2, 3):
        cluster.wait_for_end(f"{array}_{seed}")
    runs = [run_folder(cluster, f"{array}_{seed}") for seed in (1, 2, 3)]
    assert [record(run)["seed"] for run in runs] == [1, 2, 3]
    weights = [next(iter(last(run)["state_dict"].values())) for run in runs]
    assert not any(torch.equal(weights[one], weights[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
