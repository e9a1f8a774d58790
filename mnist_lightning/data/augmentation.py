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
# The largest strength of each change.
LIMITS = {
    "rotation": 180,
    "scale": 0.9,
    "shear": 80,
    "shift": 28,
    "elastic": 28,
    "stroke": 1,
    "coarse": 4,
    "blur": 28,
    "edges": 1,
    "pale": 1,
    "noise": 1,
}
SPOILED = 1 / 3  # the share of the images that one of the last five changes reaches


class Augmentation(nn.Module):
    """Move, scale, shear, rotate and bend each image at random, change its strokes, and spoil it.

    From rotation to elastic it is one resampling (bilinear; outside is black). From coarse on,
    each change reaches a random third of the images. Strength 0 leaves a change out, and with all
    at 0 the images stay as they are. The random numbers are torch's.

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
        coarse: Largest width of a coarse pixel, in pixels. Widths up to 1 change nothing.
        blur: Largest standard deviation of a Gaussian blur, in pixels.
        edges: How much harder edges become, from 0 to 1, which is black or white.
        pale: How much of its brightness an image loses, from 0 to 1, which is black.
        noise: Largest standard deviation of Gaussian noise at each pixel; 1 is white.

    Raises:
        InputError: If a strength is out of its range.
    """

    basis: Tensor
    coarse_rows: Tensor  # (29, 28, 28)

    def __init__(
        self,
        rotation: float = 15.0,
        scale: float = 0.1,
        shear: float = 10.0,
        shift: float = 2.0,
        elastic: float = 0.7,
        stroke: float = 0.0,
        coarse: float = 0.0,
        blur: float = 0.0,
        edges: float = 0.0,
        pale: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.rotation, self.scale, self.shear = rotation, scale, shear
        self.shift, self.elastic, self.stroke = shift, elastic, stroke
        self.coarse, self.blur, self.edges = coarse, blur, edges
        self.pale, self.noise = pale, noise
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
        # For each number of coarse pixels in a row: from 28 pixels to these, and back to 28.
        rows = torch.eye(28).unsqueeze(0)  # (1, 28, 28)
        coarse_rows = [torch.zeros(28, 28)]
        for number in range(1, 29):
            means = F.interpolate(rows, size=number, mode="area")  # (1, 28, number)
            coarse_rows.append(F.interpolate(means, size=28, mode="linear")[0].T)
        self.register_buffer("coarse_rows", torch.stack(coarse_rows), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return deformed images of float images, both ``(B, 1, 28, 28)`` in [0, 1]."""
        if self.stroke:
            images = self._change_strokes(images)
        if any((self.rotation, self.scale, self.shear, self.shift, self.elastic)):
            images = self._resample(images)
        return self._spoil(images)

    def _resample(self, images: Tensor) -> Tensor:
        """Move, scale, shear, rotate and bend each image."""
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

    def _spoil(self, images: Tensor) -> Tensor:
        """Make some images coarser, blur some, make some harder, some paler, and some noisy."""
        if self.coarse:
            number = (28 / self._some(self.coarse, images).clamp(min=1)).round().long()
            rows = self.coarse_rows[number.view(-1)].unsqueeze(1)  # (B, 1, 28, 28)
            images = rows @ images @ rows.mT
        if self.blur:
            images = blurred(images, self._some(self.blur, images))
        if self.edges:
            slope = 1 / (1 - self._some(self.edges, images)).clamp(min=0.01)
            images = ((images - 0.5) * slope + 0.5).clamp(0, 1)
        if self.pale:
            images = images * (1 - self._some(self.pale, images))
        if self.noise:
            noise = torch.randn_like(images) * self._some(self.noise, images)
            images = (images + noise).clamp(0, 1)
        return images

    def _some(self, most: float, images: Tensor) -> Tensor:
        """Return a strength ``(B, 1, 1, 1)`` for each image: up to ``most`` for some, else 0."""
        draws = torch.rand(2, len(images), 1, 1, 1, device=images.device)
        return most * draws[0] * (draws[1] < SPOILED)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Return images ``(B, 1, 28, 28)`` blurred with a Gaussian: its sigma is ``(B, 1, 1, 1)``."""
    places = torch.arange(28.0, device=images.device)
    distances = places - places[:, None]  # (28, 28), from a pixel to those that it is made of
    weights = torch.exp(-(distances**2) / 2 / sigma.clamp(min=0.1) ** 2)  # (B, 1, 28, 28)
    weights = weights / weights.sum(dim=3, keepdim=True)
    return weights @ images @ weights.mT


@torch.no_grad()
def augmented(augment: nn.Module, images: NDArray[np.uint8], seed: int = 42) -> NDArray[np.uint8]:
    """Return images ``(N, 28, 28)`` as training sees them; the random state stays as it was."""
    floats = torch.from_numpy(images).unsqueeze(1) / 255  # (N, 1, 28, 28)
    with seeded(seed, floats.device):
        floats = augment(floats).squeeze(1)
    return (floats * 255).round().clamp(0, 255).byte().numpy()
