"""Random deformations of digits, a new one for each image, thousands of images at a time."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning.errors import InputError
from mnist_lightning.inference import seeded

# The elastic deformation is a sum of bumps: 7 x 7 of them, 4 pixels apart, with a sigma of 4.
KNOTS = 7
KNOT_DISTANCE = 4.0
LIMITS = {"rotation": 180, "scale": 0.9, "shear": 80, "shift": 28, "elastic": 28, "stroke": 1}


class Augmentation(nn.Module):
    """Move, scale, shear, rotate and bend each image at random, and change its strokes' width.

    All but the last is one resampling (bilinear; outside is black). Strength 0 leaves a change out,
    and with all at 0 the images stay as they are. The random numbers are torch's.

    The elastic deformation (Simard et al. 2003) is a smooth random field: Gaussian bumps on a grid
    of 7x7 points.

    Args:
        rotation: Largest angle in degrees, in both directions.
        scale: Largest change of width and of height, each for itself: 0.1 means from 90% to 110%.
        shear: Largest slant in degrees, to both sides.
        shift: Largest shift in pixels, in each direction.
        elastic: Standard deviation of the displacement in pixels, at each pixel.
        stroke: How much thicker or thinner strokes become, from 0 to 1, which is about one pixel on
            each side.

    Raises:
        InputError: If a strength is out of its range.
    """

    basis: Tensor

    def __init__(
        self,
        rotation: float = 15.0,
        scale: float = 0.1,
        shear: float = 10.0,
        shift: float = 2.0,
        elastic: float = 0.7,
        stroke: float = 0.0,
    ) -> None:
        super().__init__()
        self.rotation, self.scale, self.shear = rotation, scale, shear
        self.shift, self.elastic, self.stroke = shift, elastic, stroke
        for name, most in LIMITS.items():
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name} must be in [0, {most}], got {getattr(self, name)}")
        # Where a pixel comes from is a linear function of the random numbers: those of the affine
        # map, and those of the bumps. Positions run from -1 to 1, as in grid_sample.
        pixels = (torch.arange(28) - 13.5) / 14
        knots = (torch.arange(KNOTS) - (KNOTS - 1) / 2) * KNOT_DISTANCE / 14
        sigma = KNOT_DISTANCE / 14
        bumps = torch.exp(-((pixels - knots[:, None]) ** 2) / 2 / sigma**2)  # (7, 28)
        bumps = bumps / bumps.norm(dim=0)  # so each pixel's shift has the random numbers' variance
        y, x = torch.meshgrid(pixels, pixels, indexing="ij")
        affine = torch.stack([x, y, torch.ones_like(x)])  # (3, 28, 28)
        elastic_part = torch.einsum("iy,jx->ijyx", bumps, bumps).flatten(0, 1)  # (49, 28, 28)
        basis = torch.cat([affine, elastic_part]).flatten(1)  # (52, 784)
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return deformed images of float images, both ``(B, 1, 28, 28)`` in [0, 1]."""
        if self.stroke:
            images = self._change_strokes(images)
        if not any((self.rotation, self.scale, self.shear, self.shift, self.elastic)):
            return images
        numbers = self._draw_affine(len(images), images.device)  # (B, 2, 3)
        if self.elastic:
            bends = torch.randn(len(images), 2, KNOTS**2, device=images.device)
            numbers = torch.cat([numbers, bends * (self.elastic / 14)], dim=2)  # (B, 2, 52)
        grid = numbers @ self.basis[: numbers.shape[2]]  # (B, 2, 784), where each pixel comes from
        grid = grid.view(-1, 2, 28, 28).permute(0, 2, 3, 1)  # (B, 28, 28, 2)
        return F.grid_sample(images, grid, align_corners=False)

    def _draw_affine(self, number: int, device: torch.device) -> Tensor:
        """Return a matrix ``(2, 3)`` per image: from where a pixel goes to where it comes from."""
        draws = torch.rand(6, number, device=device) * 2 - 1
        angle = draws[0] * math.radians(self.rotation)
        slant = draws[1] * math.radians(self.shear)
        wide, high = 1 + self.scale * draws[2], 1 + self.scale * draws[3]
        right, down = draws[4:] * (self.shift / 14)
        cos, sin, tan = angle.cos(), angle.sin(), slant.tan()
        # The inverse of: move, then scale, then shear by tan, then rotate.
        to_x = [(cos + tan * sin) / wide, (sin - tan * cos) / wide, -right]
        to_y = [-sin / high, cos / high, -down]
        return torch.stack([*to_x, *to_y], dim=1).view(number, 2, 3)

    def _change_strokes(self, images: Tensor) -> Tensor:
        """Mix each image with its dilation or its erosion by 3x3 pixels."""
        change = self.stroke * (torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1)
        thick = F.max_pool2d(images, 3, stride=1, padding=1)
        thin = -F.max_pool2d(-images, 3, stride=1, padding=1)
        thicker = change.clamp(min=0) * (thick - images)
        thinner = change.clamp(max=0) * (images - thin)
        return images + thicker + thinner


@torch.no_grad()
def augmented(augment: nn.Module, images: NDArray[np.uint8], seed: int = 42) -> NDArray[np.uint8]:
    """Return images ``(N, 28, 28)`` as training sees them; the random state stays as it was."""
    floats = torch.from_numpy(images).unsqueeze(1) / 255  # (N, 1, 28, 28)
    with seeded(seed, floats.device):
        floats = augment(floats).squeeze(1)
    return (floats * 255).round().clamp(0, 255).byte().numpy()
