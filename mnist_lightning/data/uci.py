"""The 1,797 handwritten digits that scikit-learn contains: real data without a download."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mnist_lightning.data.base import DigitDataModule, Split


class UCIDigits(DigitDataModule):
    """1,797 handwritten digits from the UCI repository (Alpaydin and Kaynak 1998), no download.

    The 8x8 images with 17 grey levels are scaled to 20x20 and centred in 28x28, like MNIST's
    digits. The test set is a fixed fifth of them, 360 images with the same share of each digit.
    """

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read the training or the test images and their labels.

        Returns:
            Images ``(N, 28, 28)`` uint8 in 0-255, white on black, and labels ``(N,)`` in 0-9.
        """
        # Here, because the command line imports every data module.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        train, test = train_test_split(
            np.arange(1797), test_size=0.2, stratify=digits.target, random_state=0
        )
        rows = np.sort(train if split == "train" else test)
        small = torch.from_numpy(digits.images[rows]).unsqueeze(1) * (255 / 16)  # (N, 1, 8, 8)
        large = F.interpolate(small, (20, 20), mode="bilinear", align_corners=False)
        images = F.pad(large.squeeze(1), (4, 4, 4, 4))  # (N, 28, 28)
        return images.round().byte().numpy(), digits.target[rows].astype(np.int64)
