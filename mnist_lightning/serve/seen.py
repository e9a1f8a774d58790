"""Pictures of what a network saw in an image."""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mnist_lightning.inference import activations, saliency
from mnist_lightning.report.pages import png_base64
from mnist_lightning.serve.schema import Layer, Seen

FOR, AGAINST = (240, 120, 20), (40, 130, 250)  # RGB: orange, blue
TILES = 16  # of a layer's channels in a row
UNITS = 64  # in a row
GAP = 40  # the grey between tiles


def look(net: nn.Module, image: NDArray[np.uint8], digit: int) -> Seen:
    """Return what a network saw in an image ``(28, 28)``, white on black.

    Args:
        net: From ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``.
        image: ``(28, 28)``, white on black.
        digit: The digit that the saliency is of.
    """
    layers = []
    for name, values in activations(net, image):
        shape = [size for size in values.shape if size > 1] or [1]
        picture = _drawn(values.reshape(shape))
        layers.append(Layer(name=name, shape=shape, picture=png_base64(picture)))
    coloured = _coloured(image, saliency(net, image, digit))
    return Seen(saliency=png_base64(coloured), layers=layers)


def _coloured(image: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image ``(28, 28, 3)`` with colours where the saliency is high or low."""
    share = np.abs(values) / max(np.abs(values).max(), 1e-6)
    strength = np.sqrt(share)[:, :, None]  # so that the weaker parts are seen too
    colour = np.where(values[:, :, None] > 0, FOR, AGAINST)
    grey = 0.6 * image[:, :, None]
    return np.asarray((grey + strength * (colour - grey)).astype(np.uint8))


def _drawn(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return channels ``(C, H, W)`` as tiles, or units ``(C,)`` as rows of pixels."""
    low, high = values.min(), values.max()
    grey = (255 * (values - low) / max(high - low, 1e-6)).astype(np.uint8)
    if grey.ndim != 3:
        grey = grey.ravel()
        rows = -(-len(grey) // UNITS)
        wide = -(-len(grey) // rows)
        return np.pad(grey, (0, rows * wide - len(grey))).reshape(rows, wide)
    number, height, width = grey.shape
    columns = min(TILES, number)
    rows = -(-number // columns)
    sheet = np.full((rows * (height + 1), columns * (width + 1)), GAP, np.uint8)
    for place, tile in enumerate(grey):
        top, left = place // columns * (height + 1), place % columns * (width + 1)
        sheet[top : top + height, left : left + width] = tile
    return sheet[:-1, :-1]
