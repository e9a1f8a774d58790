#!/usr/bin/env bash
# Trains on a SLURM cluster. Before its time limit the job stops and requeues itself; then it resumes with the epoch
# it was in, and ends as if nothing had stopped it.
#
#   sbatch configs/cluster/slurm.sh                                              # CPU, one process
#   sbatch --nodes=2 --ntasks-per-node=4 configs/cluster/slurm.sh                # CPU, 8 processes
#   SBATCH_GRES=gpu:1 sbatch configs/cluster/slurm.sh                            # one GPU, as with --gres=gpu:1
#   sbatch --nodes=2 --ntasks-per-node=4 --gres=gpu:4 configs/cluster/slurm.sh   # 8 GPUs: a task for each
#   sbatch --array=1-5 configs/cluster/slurm.sh --config configs/fast.yaml       # the seeds 1 to 5, a job for each
#
# Options before the script are sbatch's and replace the lines below; those after it go to `fit`. Submit it in a folder
# and an environment where `python -m mnist_lightning` works: the job gets both. It uses whatever was allocated: GPUs
# if there are any, one process per task.
#
# A job writes to RUNS/JOB/lightning_logs/ (RUNS is `runs` unless it is set), a task of an array to RUNS/JOB_TASK/.
# When it has ended: python -m mnist_lightning test --trainer.default_root_dir RUNS/JOB
# To resume a job that failed: scontrol requeue JOB; or in a new job, --ckpt_path RUNS/JOB/lightning_logs/version_0
#
# If the nodes have no network, download the data on a login node beforehand, into a folder that the nodes see and that
# MNIST_LIGHTNING_DATA names. With STAGE=/local/folder each node first copies the data to its own disk.
#
# With DOCTOR='--data MNIST', or another data set, `doctor` first checks all nodes; if a check fails, the job ends.
#
#SBATCH --job-name=mnist
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=01:00:00
# 90 seconds before the limit, SIGUSR1 to the training, not to this script. SLURM may send it up to a minute earlier.
#SBATCH --signal=USR1@90
#SBATCH --requeue
# A requeued job continues the same log: slurm-JOB.out, or slurm-JOB_TASK.out of an array.
#SBATCH --open-mode=append
set -euo pipefail

job=$SLURM_JOB_ID
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    set -- "$@" --seed_everything "$SLURM_ARRAY_TASK_ID"
fi
folder=${RUNS:-runs}/$job # the same after a requeue
# Looked up once, so that all ranks agree.
if compgen -G "$folder/lightning_logs/*/checkpoints/last.ckpt" >/dev/null; then
    set -- --ckpt_path last # the run's own config.yaml has the rest
fi

accelerator=cpu
if ((${SLURM_GPUS_ON_NODE:-0} > 0)); then
    accelerator=gpu
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes it from sbatch

if [[ -n ${STAGE:-} ]]; then
    export STAGE SOURCE=${MNIST_LIGHTNING_DATA:-data}
    # Locked, for several jobs on a node; marked, for a copy that was cut short or is of another folder.
    # shellcheck disable=SC2016 # the nodes expand it
    srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash -euc '
        mkdir -p "$STAGE"
        exec 9>"$STAGE/.lock"
        flock 9
        complete=$STAGE/.complete-$(realpath "$SOURCE" | cksum | cut -d" " -f1)
        [[ -e $complete ]] || { cp -r "$SOURCE/." "$STAGE"; touch "$complete"; }'
    export MNIST_LIGHTNING_DATA=$STAGE
fi

if [[ -n ${DOCTOR:-} ]]; then
    # shellcheck disable=SC2086 # its own arguments
    # It waits a minute for processes that do not start, and then reports that.
    srun --wait=120 python -m mnist_lightning doctor $DOCTOR --device "$accelerator" --log_dir "$folder/lightning_logs"
fi

code=0
# When a process is killed, the others may wait for it forever: --wait ends them after a minute.
srun --wait=60 python -m mnist_lightning fit "$@" \
    --trainer.default_root_dir "$folder" --trainer.accelerator "$accelerator" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" || code=$?

# 128 + SIGUSR1. After SIGTERM, 143, the scheduler itself cancels the job or requeues it.
if ((code == 138)); then
    scontrol requeue "$SLURM_JOB_ID" || true # where that is not allowed, the job ends here
fi
exit "$code"
