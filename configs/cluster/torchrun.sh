#!/usr/bin/env bash
# Runs a verb with torchrun, for machines without a scheduler: one process per GPU, or a number of them on the CPU.
#
#   configs/cluster/torchrun.sh fit                                  # all GPUs, or one process on the CPU
#   PROCESSES=2 configs/cluster/torchrun.sh fit --data UCIDigits     # two of them
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first configs/cluster/torchrun.sh fit    # on the node `first`
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=first configs/cluster/torchrun.sh fit    # on the other one
#
# Arguments go to mnist_lightning: fit, validate, test or predict, and their flags. Run it where
# `python -m mnist_lightning` works. All nodes must have as many processes and see the same folder of runs.
# CUDA_VISIBLE_DEVICES chooses GPUs; MASTER_PORT is 29500 unless it is set.
#
# Ctrl-C or SIGTERM here stops every process of this node at once, and `fit` prints how to resume.
# torchrun then adds a traceback of its own, and its exit code is 1 whatever the signal.
set -euo pipefail

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
accelerator=cpu
if ((gpus > 0)); then
    accelerator=gpu
fi
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
nodes=${NNODES:-1}
if ((nodes > 1)); then
    meeting=(--node-rank "${NODE_RANK:?says which node this is: 0 to NNODES - 1}"
        --master-addr "${MASTER_ADDR:?names the node with NODE_RANK 0}" --master-port "${MASTER_PORT:-29500}")
else
    meeting=(--standalone) # on a free port
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # torchrun's choice too, but it makes a warning of it
exec python -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$processes" "${meeting[@]}" \
    -m mnist_lightning "$@" --trainer.accelerator "$accelerator" \
    --trainer.num_nodes "$nodes" --trainer.devices "$processes"
