r"""Make the network that the package ships: mnist_lightning/pretrained.safetensors, and its card.

    python -m mnist_lightning fit --config configs/cnn_robust.yaml --data.val_fraction 0 \
        --seed 42 --name shipped
    python -m mnist_lightning test --ckpt_path lightning_logs/shipped --robustness true
    python tools/pretrained.py lightning_logs/shipped

On a CPU without bfloat16 units add --precision 32-true. All 60,000 training images are used, so
nothing is validated: the recipe and the seed were chosen before, and the test is for the card.
"""

import sys

from mnist_lightning import load_run
from mnist_lightning.checkpoints import PRETRAINED

if __name__ == "__main__":
    load_run(sys.argv[1]).export(PRETRAINED)
