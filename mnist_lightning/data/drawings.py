"""Digits that were drawn and kept: a folder of pictures for each label."""

import hashlib
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from mnist_lightning.data.base import DEFAULT_DATA_DIR, DigitDataModule, Split
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomic

NO_DIGIT = "not"  # the folder of what is no digit, which the data set does not read
LABELS = (*map(str, range(10)), NO_DIGIT)
NAME = "[0-9a-f]" * 16 + ".png"  # of a kept drawing


def keep(folder: Path, image: NDArray[np.uint8], label: int | str | None, most: int) -> int:
    """Keep a drawing as ``<folder>/<label>/<hash of its pixels>.png``, and under no other label.

    Args:
        folder: The folder of all drawings.
        image: ``(28, 28)``, white on black.
        label: The digit that it shows, ``not`` if it is none, or None to remove the drawing.
        most: The largest number of drawings.

    Returns:
        The number of drawings.

    Raises:
        InputError: If there would be too many.
    """
    name = f"{hashlib.sha256(image.tobytes()).hexdigest():.16}.png"
    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of two labels at once, each would remove the other
        kept = {file.name for label in LABELS for file in folder.glob(f"{label}/*.png")} - {name}
        if label is not None:
            kept.add(name)
            if len(kept) > most:
                raise InputError(f"{folder} has {len(kept) - 1:,} drawings already: move some away")
            (folder / str(label)).mkdir(exist_ok=True)
            write_atomic(folder / str(label) / name, png.getvalue())
        for other in {*LABELS} - {str(label)}:
            if not (folder / other).is_symlink():  # it may lead outside
                (folder / other / name).unlink(missing_ok=True)
    return len(kept)


def newest(folder: Path, most: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the drawings that were kept last, the newest first.

    Args:
        folder: The folder of all drawings. Links in it, which may lead elsewhere, are left out.
        most: The largest number of drawings.

    Returns:
        Images ``(N, 28, 28)``, and the label of each: a digit, or ``not``.
    """
    found = []
    for label in LABELS:
        if (folder / label).is_symlink():
            continue
        for file in (folder / label).glob(NAME):
            with suppress(OSError):  # another server may have moved it
                if not file.is_symlink():
                    found.append((file.stat().st_mtime_ns, file))
    images, labels = [], []
    for _, file in sorted(found, reverse=True)[:most]:
        with suppress(InputError):
            images.append(read_drawing(file))
            labels.append(file.parent.name)
    return np.array(images, np.uint8).reshape(-1, 28, 28), labels


class Drawings(DigitDataModule):
    """Digits of your own, 28x28 pixels, white on black: those kept on the page of ``serve``.

    Reads ``<data_dir>/Drawings/<label>/*.png``. Which are test images depends on their pixels
    alone, so that a drawing stays on its side when others are added.

    Args:
        data_dir: Folder of the folder Drawings; MNIST_LIGHTNING_DATA sets the default.
        test_share: Share of the drawings that are test images, in [0, 1]. With 1 the whole set can
            be tested, and nothing be trained.
        **kwargs: The arguments of every data module.

    Raises:
        InputError: If ``test_share`` is out of its range.
    """

    def __init__(
        self, data_dir: str = DEFAULT_DATA_DIR, test_share: float = 0.2, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= test_share <= 1:
            raise InputError(f"test_share must be in [0, 1], got {test_share}")
        self.data_dir, self.test_share = data_dir, test_share

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read the training or the test images and their labels.

        Returns:
            Images ``(N, 28, 28)`` uint8 in 0-255, and labels ``(N,)`` in 0-9.

        Raises:
            InputError: If there is none, or a file is not such a picture.
        """
        folder = Path(self.data_dir) / "Drawings"
        images, labels = [], []
        files = sorted(file for file in folder.glob("[0-9]/*.png") if file.is_file())
        for file in files:
            image = read_drawing(file)
            hashed = hashlib.sha256(image.tobytes()).digest()
            place = int.from_bytes(hashed[-4:]) / 2**32  # uniform in [0, 1)
            is_test = place < self.test_share
            if is_test == (split == "test"):
                images.append(image)
                labels.append(int(file.parent.name))
        if not images:
            hint = "it has none"
            if files:
                hint = f"all {len(files)} are on the other side of test_share {self.test_share}"
            raise InputError(
                f"no {split} images in {folder}: {hint}; keep more, python -m mnist_lightning serve"
            )
        return np.stack(images), np.array(labels)


def read_drawing(file: Path) -> NDArray[np.uint8]:
    """Return the pixels ``(28, 28)`` of a drawing.

    Raises:
        InputError: If it is damaged, or of another size.
    """
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            image = np.asarray(picture.convert("L"))
    except Exception as error:  # damaged bytes raise errors of any type
        raise InputError(f"cannot read {file}: {error!s:.200}; remove it") from error
    if image.shape != (28, 28):
        got = f"{image.shape[1]} x {image.shape[0]}"
        raise InputError(f"expected 28 x 28 pixels in {file}, got {got}")
    return image
