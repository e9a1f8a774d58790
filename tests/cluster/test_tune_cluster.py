"""A search by eight workers, one of which is killed: on SLURM, and with a PostgreSQL server."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import optuna
import pytest
from conftest import ROOT
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

SPACE = str(ROOT / "configs/tune/mlp.yaml")
DATA = ("--data", "UCIDigits")
TUNE = ("--space", SPACE, *DATA, "--epochs", "1", "--trials", "64")


def wait_until(done: Callable[[], object], seconds: float = 600) -> None:
    """Wait until a call returns something true; fail if that takes too long."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(0.001)


def kill_a_worker(folder: Path, study: optuna.Study) -> int | None:
    """Kill a process here that trains a trial of a study, and return the trial's number."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if found := re.fullmatch(rf"{folder}/\.trial_(\d+)\.lock", os.readlink(link)):
                number, process = int(found[1]), int(link.parts[2])
                os.kill(process, signal.SIGSTOP)
                wait_until(lambda: re.search(" [TZ] ", Path(f"/proc/{process}/stat").read_text()))  # noqa: B023
                is_running = study.trials[number].state == TrialState.RUNNING
                os.kill(process, signal.SIGKILL if is_running else signal.SIGCONT)
                if is_running:
                    return number
        except (OSError, IndexError):  # it has just ended
            continue
    return None


def check(study: optuna.Study, folder: Path, killed: int | None) -> None:
    trials = study.trials
    assert [trial.number for trial in trials] == list(range(65))
    assert [trial.number for trial in trials if trial.state == TrialState.FAIL] == [killed]
    assert sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials) == 64
    (retry,) = (trial for trial in trials if trial.user_attrs == {"retry_of": killed})
    assert retry.params == trials[killed or 0].params
    assert (
        max(Counter(str(trial.params) for trial in trials if trial.number != killed).values()) == 1
    )
    assert {path.name for path in folder.glob("trial_*")} == {
        f"trial_{n:04}" for n in range(65) if n != killed
    }
    assert [path.parent.name for path in folder.glob("*/checkpoints")] == [
        f"trial_{study.best_trial.number:04}"
    ]
    assert (folder / "index.html").exists()


@pytest.mark.timeout(1800)
@pytest.mark.slurm
def test_array_of_workers_shares_a_journal(tmp_path: Path) -> None:
    slurm = pytest.importorskip("slurm")  # Windows has no geteuid
    if reason := slurm.obstacle():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    folder = tmp_path / "lightning_logs/tune"
    with slurm.start_cluster(tmp_path) as cluster:
        cluster.run("sbatch", "--array=1-8", str(ROOT / "configs/cluster/tune.sh"), *TUNE)
        cluster.wait("best.yaml's study", lambda: (folder / "space.yaml").exists())
        journal = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        study = optuna.load_study(study_name="tune", storage=journal)
        killed: list[int] = []
        cluster.wait(
            "a trial",
            lambda: (
                (number := kill_a_worker(folder, study)) is not None and not killed.append(number)
            ),
        )
        cluster.wait("the workers", lambda: not cluster.run("squeue", "-h"))
    check(study, folder, killed[0])


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Start a server on loopback, and give its URL. It refuses to run as root."""
    user = "nobody" if os.geteuid() == 0 else None
    with (
        tempfile.TemporaryDirectory() as folder,
        ExitStack() as stack,
    ):  # root's tmp_path is closed to other users
        if user:
            shutil.chown(folder, user)
        port = pytest.importorskip("slurm").free_ports(1)[0]
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        data = ("-D", f"{folder}/data")
        initdb = [programs / "initdb", *data, "--auth=trust", "--username=tune", "--no-sync"]
        subprocess.run(initdb, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        control = [programs / "pg_ctl", *data, "-l", f"{folder}/log", "-o", options, "-w"]
        stack.callback(
            subprocess.run, [*control, "-m", "immediate", "stop"], user=user, cwd=folder, check=True
        )
        subprocess.run(
            [*control, "start"], user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        yield f"postgresql+psycopg://tune@127.0.0.1:{port}/postgres"


@pytest.mark.timeout(1800)
@pytest.mark.postgres
def test_workers_share_a_database(folder: Path) -> None:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "needs PostgreSQL: apt-get install postgresql"
        )
    with postgres(programs[-1]) as url:
        command = [sys.executable, "-m", "mnist_lightning", "tune", *TUNE, "--storage", url]
        how = {"env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}}
        workers = [subprocess.Popen(command, **how) for _ in range(8)]
        killed: list[int] = []

        def kill() -> bool:
            assert workers[0].poll() is None
            number = kill_a_worker(folder / "lightning_logs/tune", study)
            return number is not None and not killed.append(number)

        try:
            space = folder / "lightning_logs/tune/space.yaml"
            wait_until(lambda: workers[0].poll() is not None or space.exists())
            study = optuna.load_study(study_name="tune", storage=url)
            wait_until(kill)
            assert sorted(worker.wait(300) for worker in workers) == [-signal.SIGKILL] + [0] * 7
        finally:
            for worker in workers:
                worker.kill()
        check(study, folder / "lightning_logs/tune", killed[0])
