"""The batch script on a real SLURM cluster of two nodes: a job is stopped and requeued."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_resume import assert_same

# Batches of one image, for epochs that take seconds: the job can be stopped inside one.
FIT = ("--data", "UCIDigits", "--data.batch_size", "1", "--trainer.max_epochs", "3")


def saved_step(run: Path) -> int:
    file = run / "checkpoints/last.ckpt"
    return torch.load(file, weights_only=True)["global_step"] if file.exists() else 0


@pytest.mark.timeout(1800)
@pytest.mark.slurm
def test_requeued_job_is_the_same(tmp_path: Path) -> None:
    slurm = pytest.importorskip("slurm")  # Windows has no geteuid
    if reason := slurm.obstacle():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("of all nodes")
    with slurm.start_cluster(tmp_path) as cluster:
        offers = "--export=ALL,MNIST_LIGHTNING_DATA=data,STAGE=stage,DOCTOR=--data UCIDigits"
        script = (str(ROOT / "configs/cluster/slurm.sh"), *FIT)
        whole, stopped = (
            cluster.run("sbatch", "--parsable", "--nodes=2", *options, *script)
            for options in ((), (offers,))
        )
        runs = [tmp_path / f"runs/{job}/lightning_logs/version_0" for job in (whole, stopped)]
        cluster.wait("an epoch", lambda: saved_step(runs[1]) > 0)
        cluster.run("scancel", "--signal=USR1", stopped)  # as SLURM does before the time limit
        cluster.wait("a requeue", lambda: cluster.job(stopped)["Restarts"] == "1")
        saved = saved_step(runs[1])
        cluster.run(
            "scontrol", "update", f"JobId={stopped}", "StartTime=now"
        )  # SLURM would wait two minutes
        for job in (whole, stopped):
            cluster.wait(
                f"job {job}",
                lambda job=job: cluster.job(job)["JobState"] in ("COMPLETED", "FAILED"),
            )
            assert cluster.job(job)["JobState"] == "COMPLETED", (
                tmp_path / f"slurm-{job}.out"
            ).read_text()

    assert_same(*runs)
    record = json.loads((runs[1] / "run.json").read_text())
    assert (record["devices"], record["epochs"], record["global_step"]) == (2, 3, 3 * 575)
    assert 575 <= saved < 3 * 575
    assert saved % 575 == 0
    log = (tmp_path / f"slurm-{stopped}.out").read_text()
    assert (
        log.count("stopped by SIGUSR1\nTo resume: python -m mnist_lightning fit --ckpt_path runs/")
        == 1
    )
    assert log.count("Run folder: runs/") == 2  # the log is continued, and one process prints
    assert log.count("(2 processes)\n") == 2 * 6  # checks of doctor
    assert "FAIL" not in log
    assert (tmp_path / "stage/file").read_text() == "of all nodes"
