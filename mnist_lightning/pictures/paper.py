"""Find the sheet of paper in a photograph, and turn a page upright."""

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.pictures.ink import Pixels

Transform = NDArray[np.float64]  # (3, 3), of homogeneous coordinates

PHOTOGRAPH = 300  # pixels of the shorter side; in a smaller picture, a bold 0 looks like a sheet with a hole
SMALL = 400  # pixels of the longer side, enough to see a sheet
STROKE = 17  # of these: wider than any stroke
LEAST, MOST = 0.12, 0.97  # of the picture that a sheet covers
CONVEX = 0.96  # a sheet's share of its convex hull
ANGULAR = 0.92  # the share of it that the polygon of its corners covers
CORNERS = 7  # the most that a sheet has where the picture's edges cut it off
CONTRAST = 0.85  # the table's grey as a share of the sheet's, for a sheet that lies within the picture
SHADOW = 0.5  # the same for one that goes beyond it, since a shadow's edge looks like that too
MARGIN = 0.012  # of a sheet's side, left out: its edge
STEEPEST = 35  # degrees that a page may be turned
GAIN = 1.08  # lines must be that much sharper than in the page as it is


def find_sheet(grey: Pixels) -> tuple[Pixels, Transform]:
    """Return the sheet of paper, straight and without the table around it; or the picture, if it shows no table.

    Args:
        grey: ``(H, W)``.

    Returns:
        The page, grey, and the transform from its pixels to the picture's.
    """
    if min(grey.shape) >= PHOTOGRAPH:
        for levels in (grey, cv2.bitwise_not(grey)):  # a light sheet on a dark table, or the other way round
            outline = _outline(levels)
            if outline is not None:
                corners, is_whole = outline
                return _straightened(grey, corners) if is_whole else (_without_table(grey, corners), np.eye(3))
    return grey, np.eye(3)


def _outline(grey: Pixels) -> tuple[NDArray[np.float32], bool] | None:
    """Find a sheet lighter than its surroundings, with something darker written on it.

    Returns:
        Its four corners ``(4, 2)`` and True; or its outline ``(n, 2)`` and False, if the picture cuts it off.
    """
    scale = min(1, SMALL / max(grey.shape))
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (STROKE, STROKE))
    paper = cv2.morphologyEx(small, cv2.MORPH_CLOSE, ellipse)  # without what is written
    mask = cv2.threshold(paper, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))  # without reflections that touch the sheet
    outlines = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    if not outlines:
        return None
    outline = max(outlines, key=cv2.contourArea)
    hull = cv2.convexHull(outline)
    area = cv2.contourArea(hull)
    corners = cv2.approxPolyDP(hull, 0.02 * cv2.arcLength(hull, True), True)[:, 0].astype(np.float32)
    is_simple = len(corners) <= CORNERS and cv2.contourArea(corners) > ANGULAR * area
    if not (is_simple and LEAST < area / small.size < MOST and cv2.contourArea(outline) > CONVEX * area):
        return None
    sheet = cv2.fillConvexPoly(np.zeros_like(small), hull, 1)
    inner = cv2.erode(sheet, ellipse)
    light, dark = (float(np.median(paper[part == 1])) for part in (sheet, 1 - cv2.dilate(sheet, ellipse)))
    if not light or not inner.any():
        return None
    edge = np.array(small.shape[::-1]) - 2
    is_within = bool(((corners > 1) & (corners < edge)).all())
    is_whole = is_within and len(corners) == 4
    if is_within and not is_whole:
        return None
    near, far = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)) for side in (7, 15))
    within, beyond = (
        float(np.median(paper[change(sheet, near) != change(sheet, far)])) for change in (cv2.erode, cv2.dilate)
    )
    is_sharp = within - beyond > 0.5 * (light - dark)
    written = (paper.astype(np.int16) - small > 0.25 * (light - dark))[inner == 1].mean()
    if dark > (CONTRAST if is_whole else SHADOW) * light or not is_sharp or not 0.0005 < written < 0.4:
        return None
    return (corners if is_whole else hull[:, 0].astype(np.float32)) / np.float32(scale), is_whole


def _without_table(grey: Pixels, outline: NDArray[np.float32]) -> Pixels:
    """Return a picture in which the sheet goes on beyond its edges, with the grey of the nearest edge."""
    table = cv2.fillConvexPoly(np.ones_like(grey), outline.round().astype(np.int32), 0)
    width = round(MARGIN * max(grey.shape)) * 2 + 1
    table = cv2.dilate(table, np.ones((width, width), np.uint8))
    _, nearest = cv2.distanceTransformWithLabels(table, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    greys = np.zeros(nearest.max() + 1, np.uint8)
    greys[nearest[table == 0]] = cv2.blur(grey, (5, 5))[table == 0]
    return np.asarray(np.where(table == 1, greys[nearest], grey))


def _straightened(grey: Pixels, corners: NDArray[np.float32]) -> tuple[Pixels, Transform]:
    """Return the sheet with these four corners as a rectangle, and the transform from its pixels to the picture's."""
    # From the upper left clockwise: a page lies the way in which it is turned the least.
    middle = corners.mean(axis=0)
    angles = np.arctan2(*(corners - middle).T[::-1])
    corners = corners[np.argsort(angles)]
    top_left = int(np.argmin((corners - corners.min(axis=0)).sum(axis=1)))
    corners = np.roll(corners, -top_left, axis=0)
    corners = middle + (corners - middle) * np.float32(1 - 2 * MARGIN)
    width, height = (
        float(max(np.linalg.norm(corners[b] - corners[a]) for a, b in pairs))
        for pairs in (((0, 1), (3, 2)), ((0, 3), (1, 2)))
    )
    page = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    transform = cv2.getPerspectiveTransform(page, corners.astype(np.float32))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(grey, transform, (round(width), round(height)), flags=flags), transform


def skew(mask: Pixels) -> float:
    """Return by how many degrees the lines of a page go down to the right; 0 if it has no clear lines.

    Lines are level where the rows of a page hold either much ink or none: where the sum of the squares of the ink in
    each row is the largest.

    Args:
        mask: ``(H, W)``, 1 for ink.
    """
    left, top, width, height, _ = cv2.connectedComponentsWithStats(mask)[2][1:].T
    within = (left > 0) & (top > 0) & (left + width < mask.shape[1]) & (top + height < mask.shape[0])
    sizes = np.maximum(width, height)[within]
    cells = cv2.connectedComponents(1 - mask)[0]
    if (sizes > 0.2 * sizes.max(initial=0)).sum() < 3 and cells < 10:
        return 0.0  # neither digits in a row nor squared paper: a digit's own strokes are level only by chance
    y, x = np.nonzero(mask)
    step = -(-len(y) // 20_000)
    y, x = y[::step], x[::step]
    bins = max(mask.shape) / 256

    def sharpness(angle: float) -> float:
        rows = (y * np.cos(np.radians(angle)) - x * np.sin(np.radians(angle))) / bins
        counts = np.bincount((rows - rows.min()).astype(np.int64))
        return float((counts**2).sum())

    angles = np.arange(-STEEPEST, STEEPEST + 1, 1.0)
    best = max(angles, key=sharpness)
    best = max(best + np.arange(-0.8, 0.81, 0.2), key=sharpness)
    return float(best) if abs(best) < STEEPEST and sharpness(best) > GAIN * sharpness(0) else 0.0
