"""From pixels to an upright page: grey levels, the sheet in a photograph, the lines' angle."""

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.pictures.read import Pixels

Transform = NDArray[np.float64]  # (3, 3), of homogeneous coordinates

# Pixels of the shorter side; in a smaller picture, a bold 0 looks like a sheet with a hole.
PHOTOGRAPH = 300
SMALL = 400  # pixels of the longer side, enough to see a sheet
STROKE = 17  # pixels of the picture at that size: wider than any stroke
LEAST, MOST = 0.12, 0.97  # of the picture that a sheet covers
CONVEX = 0.96  # a sheet's share of its convex hull
ANGULAR = 0.92  # the share of the hull that the polygon of its corners covers
CORNERS = 7  # the most that a sheet has where the picture's edges cut it off
# The table's grey as a share of the sheet's, for a sheet that lies within the picture.
CONTRAST = 0.85
# The same for one that goes beyond the picture, since a shadow's edge looks like that too.
SHADOW = 0.5
MARGIN = 0.012  # of a sheet's side, left out: its edge
STEEPEST = 35  # degrees that a page may be turned
GAIN = 1.08  # how much sharper the lines of a turned page must be than those of the page as it is


def grey_levels(picture: Pixels) -> Pixels:
    """Return the luminance ``(H, W)``, with a suitable paper where the picture is transparent."""
    channels = picture.shape[2] if picture.ndim == 3 else 1
    if channels == 1:
        return picture
    grey = picture[..., 0] if channels == 2 else cv2.cvtColor(picture[..., :3], cv2.COLOR_RGB2GRAY)
    alpha = picture[..., -1]
    if channels == 3 or alpha.min() == 255:
        return np.ascontiguousarray(grey)
    opaque = alpha > 127
    level = float(grey[opaque].mean()) if opaque.any() else 0.0
    paper = 255.0 if level < 128 else 0.0  # for ink without paper: it stands out
    if opaque.mean() > 0.5:  # a picture with transparent margins gets more of its own paper
        paper = level
    weight = alpha / np.float32(255)
    return (grey * weight + paper * (1 - weight)).round().astype(np.uint8)


def find_sheet(grey: Pixels) -> tuple[Pixels, Transform]:
    """Return the sheet of paper, straight and without the table around it, if there is a table.

    Args:
        grey: ``(H, W)``.

    Returns:
        The page, grey, and the transform from its pixels to the picture's.
    """
    if min(grey.shape) < PHOTOGRAPH:
        return grey, np.eye(3)
    for levels in (grey, cv2.bitwise_not(grey)):  # a light sheet on a dark table, or a dark one
        found = _outline(levels)
        if found is None:
            continue
        outline, is_whole = found
        if is_whole:
            return _straightened(grey, outline)
        return _without_table(grey, outline), np.eye(3)
    return grey, np.eye(3)


def _outline(grey: Pixels) -> tuple[NDArray[np.float32], bool] | None:
    """Find a sheet lighter than its surroundings, with something darker written on it.

    Returns:
        Its four corners ``(4, 2)`` and True; or its outline ``(n, 2)`` and False, if the picture
        cuts it off.
    """
    scale = min(1, SMALL / max(grey.shape))
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)  # (h, w)
    paper = cv2.morphologyEx(small, cv2.MORPH_CLOSE, _disc(STROKE))  # without what is written
    hull = _light_hull(paper)
    if hull is None:
        return None
    polygon = cv2.approxPolyDP(hull, 0.02 * cv2.arcLength(hull, True), True)
    corners = polygon[:, 0].astype(np.float32)  # (n, 2)
    if len(corners) > CORNERS or cv2.contourArea(corners) <= ANGULAR * cv2.contourArea(hull):
        return None
    edge = np.array(small.shape[::-1]) - 2
    is_within = bool(((corners > 1) & (corners < edge)).all())
    if is_within and len(corners) != 4:
        return None
    sheet = cv2.fillConvexPoly(np.zeros_like(small), hull, 1)  # (h, w)
    if not _is_sheet(small, paper, sheet, CONTRAST if is_within else SHADOW):
        return None
    outline = corners if is_within else hull[:, 0].astype(np.float32)
    return outline / np.float32(scale), is_within


def _disc(side: int) -> Pixels:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


def _light_hull(paper: Pixels) -> NDArray[np.int32] | None:
    """Return the hull ``(n, 1, 2)`` of the largest light part, if it may be a sheet."""
    mask = cv2.threshold(paper, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
    # Opened, it is without reflections that touch the sheet.
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    outlines = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    if not outlines:
        return None
    outline = max(outlines, key=cv2.contourArea)
    hull = cv2.convexHull(outline)
    area = cv2.contourArea(hull)
    is_sized = LEAST < area / paper.size < MOST
    is_convex = cv2.contourArea(outline) > CONVEX * area
    return np.asarray(hull) if is_sized and is_convex else None


def _is_sheet(small: Pixels, paper: Pixels, sheet: Pixels, contrast: float) -> bool:
    """Return whether a part of a picture is paper: lighter, with a sharp edge, and written on.

    Args:
        small: The picture ``(h, w)``.
        paper: The picture without what is written ``(h, w)``.
        sheet: 1 in the part ``(h, w)``.
        contrast: The most that the table's grey may be, as a share of the sheet's.
    """
    inner, outer = cv2.erode(sheet, _disc(STROKE)), cv2.dilate(sheet, _disc(STROKE))
    if not inner.any():
        return False
    light, dark = float(np.median(paper[sheet == 1])), float(np.median(paper[outer == 0]))
    if not light:
        return False
    near, far = _disc(7), _disc(15)
    just_within = cv2.erode(sheet, near) != cv2.erode(sheet, far)
    just_beyond = cv2.dilate(sheet, near) != cv2.dilate(sheet, far)
    step = float(np.median(paper[just_within])) - float(np.median(paper[just_beyond]))
    is_written = paper.astype(np.int16) - small > 0.25 * (light - dark)
    share_written = is_written[inner == 1].mean()
    is_sharp = step > 0.5 * (light - dark)
    return dark <= contrast * light and is_sharp and bool(0.0005 < share_written < 0.4)


def _without_table(grey: Pixels, outline: NDArray[np.float32]) -> Pixels:
    """Return a picture in which the sheet goes on beyond its edges, as grey as at its edge."""
    table = cv2.fillConvexPoly(np.ones_like(grey), outline.round().astype(np.int32), 0)  # (H, W)
    width = round(MARGIN * max(grey.shape)) * 2 + 1
    table = cv2.dilate(table, np.ones((width, width), np.uint8))
    # nearest: the number of the sheet's pixel that is nearest to each pixel (H, W)
    _, nearest = cv2.distanceTransformWithLabels(
        table, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    greys = np.zeros(nearest.max() + 1, np.uint8)  # of each number
    greys[nearest[table == 0]] = cv2.blur(grey, (5, 5))[table == 0]
    return np.asarray(np.where(table == 1, greys[nearest], grey))


def _straightened(grey: Pixels, corners: NDArray[np.float32]) -> tuple[Pixels, Transform]:
    """Return the sheet with these corners as a rectangle, and the transform to the picture."""
    middle = corners.mean(axis=0)
    x, y = (corners - middle).T
    corners = corners[np.argsort(np.arctan2(y, x))]  # clockwise
    # The first is the upper left one: a page lies the way in which it is turned the least.
    top_left = int(np.argmin((corners - corners.min(axis=0)).sum(axis=1)))
    corners = np.roll(corners, -top_left, axis=0)
    corners = middle + (corners - middle) * np.float32(1 - 2 * MARGIN)
    top, right, bottom, left = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
    width, height = float(max(top, bottom)), float(max(left, right))
    page = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    transform = cv2.getPerspectiveTransform(page, corners.astype(np.float32))
    size = round(width), round(height)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(grey, transform, size, flags=flags), transform


def skew(mask: Pixels) -> float:
    """Return by how many degrees a page's lines go down to the right; 0 if they are not clear.

    Lines are level where the rows of a page hold either much ink or none: where the sum of the
    squares of the ink in each row is the largest.

    Args:
        mask: ``(H, W)``, 1 for ink.
    """
    if not _has_lines(mask):
        return 0.0
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
    is_clear = abs(best) < STEEPEST and sharpness(best) > GAIN * sharpness(0)
    return float(best) if is_clear else 0.0


def _has_lines(mask: Pixels) -> bool:
    """Return whether a page has several digits or is squared; a lone digit shows no angle."""
    left, top, width, height, _ = cv2.connectedComponentsWithStats(mask)[2][1:].T
    is_whole_x = (left > 0) & (left + width < mask.shape[1])
    is_whole_y = (top > 0) & (top + height < mask.shape[0])
    sizes = np.maximum(width, height)[is_whole_x & is_whole_y]
    digits = (sizes > 0.2 * sizes.max(initial=0)).sum()
    cells = cv2.connectedComponents(1 - mask)[0]
    return bool(digits >= 3 or cells >= 10)


def turned(ink: Pixels, mask: Pixels, angle: float) -> tuple[Pixels, Pixels, Transform]:
    """Turn a page by degrees; return also the transform from its new pixels to the old ones."""
    height, width = ink.shape
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    size = round(width * abs(cos) + height * abs(sin)), round(width * abs(sin) + height * abs(cos))
    back = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    back[:2, 2] = np.array([width, height]) / 2 - back[:2, :2] @ np.array(size) / 2
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    ink = cv2.warpAffine(ink, back[:2], size, flags=flags)
    mask = cv2.warpAffine(mask * np.uint8(255), back[:2], size, flags=flags)
    return ink, cv2.threshold(mask, 127, 1, cv2.THRESH_BINARY)[1], back
