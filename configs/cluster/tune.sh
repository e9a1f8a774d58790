#!/usr/bin/env bash
# Searches for settings on a SLURM cluster: each task of the array is a worker, and all share one study.
#
#   sbatch --array=1-8 configs/cluster/tune.sh --space configs/tune/mlp.yaml --trials 64 --epochs 6
#
# Options before the script are sbatch's and replace the lines below; those after it go to `tune`. Submit it in a folder
# that all nodes see, and in an environment where `python -m mnist_lightning` works: the study is in
# lightning_logs/tune there, or in lightning_logs/NAME with --name NAME. A second array helps the first.
#
# A worker trains one trial at a time, on one GPU if it gets one: --gres=gpu:1. The trial of a task that was killed or
# requeued fails, and the next worker tries its settings once more. The last worker writes the page; if that one was
# killed, submit one more task.
#
#SBATCH --job-name=tune
#SBATCH --ntasks=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=01:00:00
# 90 seconds before the limit, SIGUSR1 stops the worker, and the job is requeued.
#SBATCH --signal=USR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes it from sbatch
code=0
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} srun python -m mnist_lightning tune "$@" || code=$?
if ((code == 138)); then # 128 + SIGUSR1
    scontrol requeue "$SLURM_JOB_ID" || true # where that is not allowed, the job ends here
fi
exit "$code"
