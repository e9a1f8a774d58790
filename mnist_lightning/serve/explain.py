"""Pictures of what a network made of an image: where it looked, and what its layers gave."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mnist_lightning.inference import activations, occlusion
from mnist_lightning.report.pages import png_base64

FOR, AGAINST = (240, 120, 20), (70, 150, 240)  # orange and blue
COLUMNS = 16  # of tiles, and of the rows that a dense layer's numbers are shown in
GREY = 70  # between tiles


def explain(net: nn.Module, image: NDArray[np.uint8]) -> dict[str, Any]:
    """Return pictures, PNG in base64, of what a network made of an image ``(28, 28)``.

    Orange parts of ``saliency`` speak for the network's answer, blue ones against it. Each of the
    ``layers`` has a ``name`` and its numbers as a ``picture``, bright where they are high.
    """
    layers = []
    for name, values in activations(net, image):
        layers.append({"name": name, "picture": png_base64(tiles(values))})
    return {"saliency": png_base64(coloured(image, occlusion(net, image))), "layers": layers}


def coloured(image: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image in grey under a map of values ``(28, 28)`` in colour: ``(28, 28, 3)``."""
    strength = np.abs(values) / max(float(np.abs(values).max()), 1e-9)  # in [0, 1]
    colour = np.where(values[..., None] > 0, FOR, AGAINST)
    grey = np.repeat(image[..., None], 3, axis=2) * 0.6
    share = 0.85 * strength[..., None]
    return np.asarray((1 - share) * grey + share * colour).round().astype(np.uint8)


def tiles(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a layer's numbers as grey: a tile for each channel, or rows of a dense layer's."""
    scaled = 255 * values.clip(0) / max(float(values.max()), 1e-9)
    if values.ndim == 1:
        scaled = scaled[:, None, None]
    channels, height, width = scaled.shape
    columns = min(COLUMNS, channels)
    rows = -(-channels // columns)
    picture = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), GREY, np.uint8)
    for number, tile in enumerate(scaled):
        row, column = divmod(number, columns)
        top, left = row * (height + 1), column * (width + 1)
        picture[top : top + height, left : left + width] = tile.round()
    return picture
