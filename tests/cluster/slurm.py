"""A real SLURM cluster of two nodes on one machine: its own munge, a controller, two daemons.

Everything is in one folder and on free ports of loopback, so a SLURM that runs here is neither used
nor changed.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from conftest import ROOT

HOST = socket.gethostname().split(".")[0]
NODES = (
    HOST,
    f"{HOST}b",
)  # the first one's name resolves: Lightning takes it as the master's address
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool/%n
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
FirstJobId={first_job}
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=10000
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=10000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def obstacle() -> str | None:
    """Say what keeps a cluster from starting on this machine, if anything."""
    missing = [
        name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None
    ]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "needs root, as SLURM's daemons do"


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)
        ]
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """Commands for a cluster whose files are in a folder, in which jobs start too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "PYTHONPATH": str(ROOT)}
        self.env = os.environ | own | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}

    def run(self, *command: str, check: bool = True) -> str:
        """Return what a command prints."""
        done = subprocess.run(
            command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows of a job."""
        return dict(
            field.partition("=")[::2]
            for field in self.run("scontrol", "show", "job", "-o", number).split()
        )

    def wait(self, what: str, happened: Callable[[], object], seconds: float = 300) -> None:
        """Wait until something has happened, or fail with the ends of all logs."""
        deadline = time.monotonic() + seconds
        while not happened():
            logs = [*self.folder.glob("*.log"), *self.folder.glob("slurm-*.out")]
            ends = "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs)
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{ends}"
            time.sleep(0.2)


@contextmanager
def start_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster in an empty folder, and stop it and all jobs afterwards."""
    cluster = Cluster(folder)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key-file").touch(0o600)
    (folder / "munge.key-file").write_bytes(secrets.token_bytes(128))
    # Lightning derives the master's port from the job's number, and others may be testing on this
    # machine.
    numbers = {"ports": free_ports(3), "first_job": 1000 + secrets.randbelow(8000)}
    (folder / "slurm.conf").write_text(
        CONF.format(folder=folder, host=HOST, nodes=NODES, **numbers)
    )
    files = [
        f"--{name}={folder}/munge.{name}"
        for name in ("key-file", "pid-file", "seed-file", "socket")
    ]
    daemons = [["munged", "--foreground", "--force", *files], ["slurmctld", "-D"]]
    daemons += [["slurmd", "-D", "-N", node] for node in NODES]
    with ExitStack() as stack:
        for number, command in enumerate(daemons):
            log = stack.enter_context((folder / f"{number}-{command[0]}.log").open("w"))
            process = subprocess.Popen(
                command, env=cluster.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        idle = [f"{node} idle" for node in NODES]
        cluster.wait(
            "idle nodes",
            lambda: cluster.run("sinfo", "-hN", "-o%N %T", check=False).splitlines() == idle,
            60,
        )
        try:
            yield cluster
        finally:  # processes of jobs would outlive the daemons
            cluster.run("scancel", "--user=root", check=False)
            cluster.wait("no jobs", lambda: not cluster.run("squeue", "-h", check=False), 60)
