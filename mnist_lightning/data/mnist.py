"""MNIST, and the two data sets that share its four files and their names: FashionMNIST and KMNIST.

Read it after ``data/base.py``. ``classifier.py`` comes next; the other sources in this folder are
as small.
"""

import gzip
import hashlib
import math
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import Request, urlopen

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mnist_lightning.data.base import DEFAULT_DATA_DIR, DigitDataModule, Split
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomic

TIMEOUT_SECONDS = 30  # to connect, and for each answer of a mirror
MAX_BYTES = 1 << 26  # of a download; the largest file has 26 MB

Content = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (N, 28, 28), labels (N,)


class MNIST(DigitDataModule):
    """70,000 handwritten digits (LeCun, Cortes and Burges 1998), 10,000 of them the test set.

    Reads ``<data_dir>/MNIST/raw``, the folder that torchvision uses. Missing or damaged files are
    downloaded; valid files need no network.

    Args:
        data_dir: Folder with the data, or for the download; MNIST_LIGHTNING_DATA sets the default.
        mirrors: Web folders to download from, tried in this order; by default two public ones.
        **kwargs: The arguments of every data module.
    """

    source: ClassVar[str] = "MNIST"  # its name in torchvision
    default_mirrors: ClassVar[list[str]] = [
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ]
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {
        "train-images-idx3-ubyte": (60_000, 28, 28),
        "train-labels-idx1-ubyte": (60_000,),
        "t10k-images-idx3-ubyte": (10_000, 28, 28),
        "t10k-labels-idx1-ubyte": (10_000,),
    }
    sha256: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738"
        "ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5"
        "333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77"
        "db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351"
        "222c34898ecbeaf847f06e48f7ec33f2",
    }

    def __init__(
        self, data_dir: str = DEFAULT_DATA_DIR, mirrors: list[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.data_dir = data_dir
        self.mirrors = self.default_mirrors if mirrors is None else mirrors
        self._prepared: dict[Split, Content] = {}  # what prepare_data read, for load

    @property
    def dataset(self) -> str:
        """The name of the images' collection."""
        return self.source

    @property
    def folder(self) -> Path:
        """The folder with the four files."""
        return Path(self.data_dir) / self.source / "raw"

    def load(self, split: Split) -> Content:
        """Read the training or the test images and their labels.

        Returns:
            Images ``(N, 28, 28)`` uint8 in 0-255, white on black, and labels ``(N,)`` in 0-9.

        Raises:
            InputError: If a file is missing or damaged.
        """
        return self._prepared.pop(split, None) or self._read_split(split)

    def prepare_data(self) -> None:
        """Check the files that the verb reads; if one is missing or damaged, download all that are.

        ``fit`` and ``validate`` read the training files, ``test`` and ``predict`` the test files.
        Of several processes one downloads, and the others wait for it.

        Raises:
            InputError: If no mirror sends a valid file, or the folder is not writable.
        """
        super().prepare_data()
        try:
            for split in self.missing(self.verb):
                self._prepared[split] = self._read_split(split)
        except InputError:
            self._download_missing()

    def _download_missing(self) -> None:
        lock = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                for name in self.shapes:
                    try:
                        self._read(name)
                    except InputError:
                        write_atomic(self.folder / name, self._download(name))
        except OSError as error:
            what = f"cannot write to {self.folder}: {error.strerror or error}"
            raise InputError(f"{what}; choose another data_dir") from error
        finally:
            # Removed, because another user of a shared folder could not open it.
            with suppress(OSError):
                lock.unlink()

    def verify(self) -> str:
        """Check the four files without a download; return where they are and what was checked.

        Raises:
            InputError: If one is missing or damaged; the message says how to get it.
        """
        for name in self.shapes:
            self._read(name)
        how = "SHA-256" if self.sha256 else "header and size"
        return f"{self.source} in {self.folder}: four files, {how} as published"

    def _read_split(self, split: Split) -> Content:
        prefix = "train" if split == "train" else "t10k"
        images = self._read(f"{prefix}-images-idx3-ubyte")
        labels = self._read(f"{prefix}-labels-idx1-ubyte")
        return images, labels.astype(np.int64)

    def _read(self, name: str) -> NDArray[np.uint8]:
        """Read and check an IDX file (http://yann.lecun.com/exdb/mnist/, "The IDX file format")."""
        path, shape = self.folder / name, self.shapes[name]
        # Two zero bytes, 8 for unsigned bytes, the number of dimensions, and each dimension as a
        # big-endian integer.
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        size = len(header) + math.prod(shape)
        remedy = (
            f"put {self.source}'s four files into {self.folder}, or download them on a machine "
            f"with a network: python -m mnist_lightning describe --data {self.source} "
            f"--data.data_dir {self.data_dir}"
        )
        try:
            found = path.stat().st_size  # first, since reading from a pipe would wait
            content = np.fromfile(path, np.uint8) if found == size else np.empty(0, np.uint8)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; {remedy}") from error
        checks = {
            "size": (f"{size:,} bytes", f"{found:,} bytes"),
            "header": (header.hex(), content[: len(header)].tobytes().hex()),
        }
        if name in self.sha256:
            checks["SHA-256"] = self.sha256[name], hashlib.sha256(content.data).hexdigest()
        for what, (expected, got) in checks.items():
            if got != expected:
                raise InputError(
                    f"{path} is damaged: expected {what} {expected}, got {got}; {remedy}"
                )
        return content[len(header) :].reshape(shape)

    def _download(self, name: str) -> bytes:
        """Download a file from the first mirror that sends it whole, and unpack it."""
        import torchvision.datasets  # here, because the import takes a while

        expected = dict(getattr(torchvision.datasets, self.source).resources)[f"{name}.gz"]
        failures = []
        for mirror in self.mirrors:
            url = f"{mirror.rstrip('/')}/{name}.gz"
            print(f"Downloading {url}", flush=True)
            try:
                # Some servers refuse urllib's default name.
                request = Request(url, headers={"User-Agent": "mnist_lightning"})
                with urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                    packed: bytes = response.read(MAX_BYTES)
                md5 = hashlib.md5(packed, usedforsecurity=False).hexdigest()
                if md5 == expected:
                    return gzip.decompress(packed)
                failures.append(
                    f"{mirror} ({len(packed):,} bytes, expected MD5 {expected}, got {md5})"
                )
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"{mirror} ({error!s:.200})")
        raise InputError(
            f"{self.folder / name} is missing or damaged, and no mirror sent a valid file: tried "
            f"{', '.join(failures) or 'none'}; put {self.source}'s four files into {self.folder}, "
            "name other --data.mirrors, or use --data UCIDigits, which needs no download"
        )


class FashionMNIST(MNIST):
    """70,000 pictures of ten kinds of clothing (Xiao, Rasul and Vollgraf 2017).

    10,000 of them are the test set. Reads ``<data_dir>/FashionMNIST/raw``. A download is checked by
    its published MD5, a file by its header and size.

    Args:
        data_dir: Folder with the data, or for the download; MNIST_LIGHTNING_DATA sets the default.
        mirrors: Web folders to download from, tried in this order; by default two public ones.
        **kwargs: The arguments of every data module.
    """

    source = "FashionMNIST"
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    default_mirrors: ClassVar[list[str]] = [
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
    ]
    sha256: ClassVar[dict[str, str]] = {}


class KMNIST(MNIST):
    """70,000 handwritten Japanese characters in ten classes (Clanuwat et al. 2018).

    10,000 of them are the test set. Reads ``<data_dir>/KMNIST/raw``. A download is checked by
    its published MD5, a file by its header and size.

    Args:
        data_dir: Folder with the data, or for the download; MNIST_LIGHTNING_DATA sets the default.
        mirrors: Web folders to download from, tried in this order; by default its authors'.
        **kwargs: The arguments of every data module.
    """

    source = "KMNIST"
    class_names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")  # hiragana
    default_mirrors: ClassVar[list[str]] = [
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist",
        # http is acceptable, because the MD5 is checked
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
    ]
    sha256: ClassVar[dict[str, str]] = {}
