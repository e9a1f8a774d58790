"""A real SLURM cluster of two nodes on one machine: a munge of its own, a controller and two node daemons.

All of it is in one folder and on free ports of loopback: an installed or running SLURM is neither used nor changed.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from conftest import ROOT

HOST = socket.gethostname().split(".")[0]
NODES = (HOST, f"{HOST}b")  # the first one's name resolves: Lightning takes it as the master's address
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL"}
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
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "needs root, as SLURM's daemons do"
    try:
        socket.gethostbyname(HOST)
    except OSError as error:
        return f"needs this machine's name to resolve: {HOST}: {error}"
    return None


class Cluster:
    """Two nodes that take jobs while the context lasts; jobs start in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> "Cluster":
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key-file"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        # Lightning derives the master's port from the job's number, and others may be testing on this machine.
        first_job = 1000 + secrets.randbelow(8000)
        conf = CONF.format(folder=self.folder, host=HOST, nodes=NODES, ports=free_ports(3), first_job=first_job)
        (self.folder / "slurm.conf").write_text(conf)
        with ExitStack() as stack:
            files = ("key-file", "pid-file", "seed-file", "socket")
            options = [f"--{name}={self.folder / f'munge.{name}'}" for name in files]
            # --force: the socket's folder need be open to nobody else.
            self._start(stack, "munged", "munged", "--foreground", "--force", *options)
            self._start(stack, "slurmctld", "slurmctld", "-D")
            for node in NODES:
                self._start(stack, node, "slurmd", "-D", "-N", node)
            stack.callback(self._empty)
            idle = [f"{node} idle" for node in NODES]
            self.wait("two idle nodes", lambda: self.run("sinfo", "-hN", "-o%N %T", check=False).splitlines() == idle)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack, name: str, *command: str) -> None:
        """Start a daemon in the foreground; the stack ends it."""
        log = stack.enter_context((self.folder / f"{name}.log").open("w"))
        process = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def stop() -> None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        stack.callback(stop)

    def _empty(self) -> None:
        """End all jobs: their processes would outlive the daemons."""
        self.run("scancel", "--user=root", check=False)
        self.wait("no jobs", lambda: not self.run("squeue", "-h", check=False))

    def run(self, *command: str, check: bool = True) -> str:
        """Return what a command prints."""
        done = subprocess.run(command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *args: str) -> str:
        """Submit a job with the shipped script, and return its number."""
        return self.run("sbatch", "--parsable", *args)

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows of a job."""
        return dict(field.partition("=")[::2] for field in self.run("scontrol", "show", "job", "-o", number).split())

    def wait(self, what: str, happened: Callable[[], object], seconds: float = 60) -> None:
        """Wait until something has happened, or fail with the ends of all logs."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}\n{self.logs()}"
            time.sleep(0.2)

    def wait_for_end(self, number: str) -> None:
        """Wait until a job has completed, or fail with the ends of all logs."""
        self.wait(f"job {number} to end", lambda: self.job(number)["JobState"] in ENDED, 180)
        assert self.job(number)["JobState"] == "COMPLETED", self.logs()

    def logs(self) -> str:
        """Return the ends of all logs, the daemons' and the jobs'."""
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("slurm-*.out")])
        return "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs)


def free_ports(number: int) -> list[int]:
    """Return ports that nothing listened on just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
