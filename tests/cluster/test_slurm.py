"""The shipped batch script on a real SLURM cluster: two nodes, arrays, and jobs that are preempted and go on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from slurm import ENDED, Cluster, obstacle
from test_resume import differences, last, run_of

from mnist_lightning.loggers import read_history

SCRIPT = str(ROOT / "configs/cluster/slurm.sh")
EPOCHS = 5
# Batches of one image, for epochs of seconds: they can be interrupted in the middle.
FIT = ("--data", "UCIDigits", "--data.batch_size", "1", "--trainer.max_epochs", str(EPOCHS))

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> str:
    """The number of a job that trained on two nodes, with all the script offers, and nothing disturbed it."""
    (cluster.folder / "data").mkdir()
    (cluster.folder / "data/file").write_text("shared by the nodes")
    offers = "MNIST_LIGHTNING_DATA=data,STAGE=stage,DOCTOR=--data UCIDigits"
    job = cluster.submit("--nodes=2", f"--export=ALL,{offers}", SCRIPT, *FIT)
    cluster.wait_for_end(job)
    return job


def root(cluster: Cluster, job: str) -> Path:
    return cluster.folder / "runs" / job


def log(cluster: Cluster, job: str) -> list[str]:
    return (cluster.folder / f"slurm-{job}.out").read_text().splitlines()


def test_a_job_trains_on_two_nodes(cluster: Cluster, undisturbed: str) -> None:
    run = run_of(root(cluster, undisturbed))
    record = json.loads((run / "run.json").read_text())
    assert (record["devices"], record["epochs"], record["seed"]) == (2, EPOCHS, 42)
    assert [row["epoch"] for row in read_history(run / "metrics.csv")] == [str(epoch) for epoch in range(EPOCHS)]
    lines = log(cluster, undisturbed)
    assert sum("Run folder: runs/" in line for line in lines) == 1, "one rank speaks"
    assert [line.split()[1] for line in lines if line.startswith("Epoch ")] == [str(epoch) for epoch in range(EPOCHS)]
    assert {line.split()[0] for line in lines if "(2 ranks)" in line} == {"ok"}, "doctor has checked both nodes"
    assert (cluster.folder / "stage/file").read_text() == "shared by the nodes"


def interrupt(cluster: Cluster, job: str, epoch: int, times: int, *command: str) -> None:
    """Interrupt a job for the ``times``-th time, early in the epoch after this one, and see it queued again."""

    def epoch_done() -> bool:
        histories = root(cluster, job).glob("lightning_logs/*/metrics.csv")
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
    first = last(root(cluster, job))["global_step"]
    interrupt(cluster, job, 2, 2, "scontrol", "requeue", job)  # as another job's preemption does: SIGTERM
    second = last(root(cluster, job))["global_step"]
    cluster.wait_for_end(job)

    assert 0 < first < second < last(root(cluster, undisturbed))["global_step"]
    runs = [run_of(root(cluster, each)) for each in (undisturbed, job)]
    for name in ("best.ckpt", "last.ckpt"):
        reference, resumed = (torch.load(run / "checkpoints" / name, weights_only=True) for run in runs)
        del reference["callbacks"], resumed["callbacks"]  # Lightning's ModelCheckpoint does not restore current_score
        assert differences(reference, resumed) == []
    assert (runs[0] / "metrics.csv").read_bytes() == (runs[1] / "metrics.csv").read_bytes()
    lines = log(cluster, job)
    assert sum("Run folder: runs/" in line for line in lines) == 3, "the log is appended"
    assert f"Saved: {first:,} updates." in "\n".join(lines)
    assert sum(line.startswith("Epoch 1 ") for line in lines) == 1, "an epoch that was gone on with has its line"


def test_an_array_is_a_run_for_each_seed(cluster: Cluster) -> None:
    array = cluster.submit("--array=1-3", SCRIPT, "--data", "UCIDigits", "--trainer.max_epochs", "1")
    roots = [root(cluster, f"{array}_{seed}") for seed in (1, 2, 3)]
    for seed in (1, 2, 3):
        cluster.wait_for_end(f"{array}_{seed}")
    assert [json.loads((run_of(each) / "run.json").read_text())["seed"] for each in roots] == [1, 2, 3]
    weights = [next(iter(last(each)["state_dict"].values())) for each in roots]
    assert not any(torch.equal(weights[one], weights[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
