"""Digits written with strokes: bent, slanted and turned at random, as by some hand."""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Ways to write the digits. A stroke is a smooth curve through points x,y of a square of 100 units,
# y downwards. "/" is a corner, and "|" lifts the pen.
SHAPES = [
    (0, "22,14 14,50 24,88 50,100 76,88 86,50 78,14 50,0 22,14"),
    (0, "35,14 29,50 35,86 50,100 65,86 71,50 65,14 52,0 35,14"),
    (0, "64,8 40,2 14,22 8,52 20,86 50,99 82,84 92,48 80,14 54,2 40,6"),
    (1, "50,0/50,100"),
    (1, "30,22/52,0/52,100"),
    (1, "32,20/50,0/50,100|28,100/74,100"),
    (1, "56,0 52,50 50,100"),
    (2, "18,24 30,6 52,0 76,10 79,32 62,58 14,100/86,100"),
    (2, "18,22 34,4 56,0 76,12 76,36 58,66 34,92 16,96 16,84 32,82 52,92 70,99 90,92"),
    (2, "16,14 46,0 74,12 68,44 42,72 12,98/88,94"),
    (3, "20,14 46,0 74,10 74,34 44,47/76,56 82,80 54,100 16,88"),
    (3, "18,2/80,0/46,40/74,46 84,70 62,98 16,92"),
    (3, "22,12 48,0 72,14 66,38 40,46 66,52 82,72 68,96 42,100 16,88"),
    (4, "24,0/14,62/88,62|66,22/64,100"),
    (4, "62,100/62,0/10,68/90,68"),
    (4, "58,0/10,64/90,62|64,34/62,100"),
    (4, "18,0 12,40 26,54/82,50|80,4/74,100"),
    (5, "78,0/28,0/24,44/52,36 80,50 82,78 54,100 16,90"),
    (5, "28,4/24,46/52,38 80,52 80,80 52,100 16,90|28,4/84,0"),
    (5, "26,12/24,46/54,40 80,56 78,84 50,100 16,92|38,2/86,-2"),
    (5, "80,2 50,2 28,14 32,40 64,50 80,68 68,94 42,100 16,90"),
    (6, "66,0 36,26 20,64 28,92 54,100 78,84 74,60 50,54 28,66 22,80"),
    (6, "74,12 58,0 38,12 22,48 24,84 50,100 76,86 74,62 50,54 26,72"),
    (6, "60,0/22,64 24,90 50,100 74,90 76,68 54,58 24,72"),
    (7, "14,4/84,2/44,100"),
    (7, "14,2/84,0/42,100|34,52/80,48"),
    (7, "16,18/18,2/84,2/62,40 48,100"),
    (8, "76,14 50,0 26,14 34,38 66,56 76,80 50,100 24,80 34,56 66,38 76,14"),
    (8, "50,0 28,10 28,36 50,46 72,36 72,10 50,0|50,46 24,60 22,86 50,100 78,86 76,60 50,46"),
    (8, "74,10 48,0 28,14 36,40 68,60 74,84 50,100 26,84 32,60 62,42 78,16"),
    (9, "76,12 50,0 24,16 24,42 48,52 70,36 77,4/75,100"),
    (9, "76,14 50,0 24,16 26,44 52,52 72,36 77,10/78,62 66,92 42,100 22,88"),
    (9, "72,14 50,0 26,14 26,40 50,48 70,28 73,8/54,100"),
]


def shape(digit: int, rng: Generator) -> list[Floats]:
    """Return the curves ``(points, 2)`` of a digit.

    About one unit high and written by some hand.
    """
    width, slant, bend = rng.uniform(0.6, 1.1), rng.uniform(-0.2, 0.3), rng.uniform(0.75, 1.3)
    hand = cv2.getRotationMatrix2D((0, 0), rng.uniform(-8, 8), 1)[:, :2] @ [[width, -slant], [0, 1]]
    curves = []
    for stroke in str(rng.choice([strokes for each, strokes in SHAPES if each == digit])).split(
        "|"
    ):
        end = np.empty((0, 2))
        for piece in stroke.split("/"):
            points = np.array([point.split(",") for point in piece.split()], float) / 100
            points[:, 1] = points[:, 1].clip(0) ** bend  # a larger or smaller upper half
            points = np.concatenate([end, (points + rng.normal(0, 0.02, points.shape)) @ hand.T])
            end = points[-1:]
            if len(points) > 1:
                curves.append(smooth(points))
    return curves


def smooth(points: NDArray[np.float64]) -> Floats:
    """Return a Catmull-Rom curve through points.

    Its tangent at each is half the difference of the neighbours.
    """
    tangents = np.gradient(points, axis=0)
    t = np.linspace(0, 1, 16)[:, None]
    parts = [
        (1 + 2 * t) * (1 - t) ** 2 * a
        + t * (1 - t) ** 2 * u
        + t * t * (3 - 2 * t) * b
        + t * t * (t - 1) * v
        for a, b, u, v in zip(points, points[1:], tangents, tangents[1:], strict=False)
    ]
    return np.concatenate(parts).astype(np.float32)
