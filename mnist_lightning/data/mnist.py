"""MNIST and FashionMNIST from their IDX files, downloaded and verified."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from filelock import FileLock
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray

from mnist_lightning.data.base import DEFAULT_DATA_DIR, DigitDataModule, Split
from mnist_lightning.data.download import check_mirrors, download
from mnist_lightning.data.idx import check_idx, read_idx
from mnist_lightning.errors import InputError
from mnist_lightning.files import kept_if_used, open_regular, sweep, write_atomic


class IDXFile(NamedTuple):
    """One of the four files of a data set."""

    name: str
    shape: tuple[int, ...]
    sha256: str | None  # of its content; None where only the compressed download's MD5 is published


class MNIST(DigitDataModule):
    """70,000 handwritten digits (LeCun, Cortes and Burges), 10,000 of them the test set.

    Reads ``<data_dir>/MNIST/raw``, torchvision's layout. What is missing or corrupt there is downloaded; valid
    files mean no network.

    Args:
        data_dir: Folder that holds, or will hold, the data; MNIST_LIGHTNING_DATA sets the default.
        mirrors: Addresses to download from, https:// or http://, tried in turn; well-known https:// ones by default.
        memory_map: Whether the images stay on disk, mapped into memory, rather than being read into it.
        **kwargs: What every data module takes.
    """

    source: ClassVar[str] = "MNIST"  # its name in torchvision, and of its folder
    # The first of torchvision's (its other one has no https), and that of TensorFlow Datasets.
    default_mirrors: ClassVar[tuple[str, ...]] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    files: ClassVar[dict[Split, tuple[IDXFile, IDXFile]]] = {
        "train": (
            IDXFile(
                "train-images-idx3-ubyte",
                (60_000, 28, 28),
                sha256="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            IDXFile(
                "train-labels-idx1-ubyte",
                (60_000,),
                sha256="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
        ),
        "test": (
            IDXFile(
                "t10k-images-idx3-ubyte",
                (10_000, 28, 28),
                sha256="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            IDXFile(
                "t10k-labels-idx1-ubyte",
                (10_000,),
                sha256="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    }

    def __init__(
        self,
        data_dir: str = DEFAULT_DATA_DIR,
        mirrors: Sequence[str] | None = None,
        memory_map: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.data_dir = data_dir
        self.mirrors = self.default_mirrors if mirrors is None else mirrors
        check_mirrors(self.mirrors)
        self.memory_map = memory_map

    @property
    def folder(self) -> Path:
        """Where the IDX files are."""
        return Path(self.data_dir) / self.source / "raw"

    def prepare_data(self) -> None:
        """Verify what the verb reads, and download whatever is missing or corrupt if any of that is.

        ``fit`` and ``validate`` read the training files only, so they neither need nor look at the test files
        unless there is something to download; then all four come at once, for the verbs that follow.

        Raises:
            InputError: If a file is missing or corrupt and no mirror has it, or the folder cannot be used.
        """
        every = [file for files in self.files.values() for file in files]
        needed = every
        if self.trainer is not None and self.trainer.state.fn is not None:
            fits = self.trainer.state.fn in (TrainerFn.FITTING, TrainerFn.VALIDATING)
            needed = list(self.files["train" if fits else "test"])
        if not any(self._problem(file) for file in needed):
            return
        with _locked(self.folder):
            sweep(self.folder)
            for file in needed + [file for file in every if file not in needed]:
                problem = self._problem(file)  # once more: another process may have been here before the lock
                if problem:
                    self._download(file, problem)

    def verify(self) -> str:
        """Check that the four files are there and whole, but fetch nothing; return where they are and what was checked.

        Raises:
            InputError: If one is missing or corrupt; it says how to get it.
        """
        every = [file for files in self.files.values() for file in files]
        for file in every:
            if problem := self._problem(file):
                raise InputError(
                    f"{problem}; put {self.source}'s files into {self.folder}, or download them where there is a "
                    f"network: python -m mnist_lightning describe --data {self.source} --data.data_dir {self.data_dir}"
                )
        how = "SHA-256 as published" if all(file.sha256 for file in every) else "header and size as published"
        return f"{self.source} in {self.folder}: four files, {how}"

    def _problem(self, file: IDXFile) -> str | None:
        """Return what is wrong with a file, or None. Its whole content is read, but not kept."""
        path = self.folder / file.name
        try:
            if file.sha256 is None:
                read_idx(path, file.shape, memory_map=True)
                return None
            with open_regular(path) as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            raise self._unreadable(path, error) from error
        except InputError as error:
            return str(error)
        return None if digest == file.sha256 else f"{path} is corrupt: SHA-256 {digest} instead of {file.sha256}"

    def _unreadable(self, path: Path, error: OSError) -> InputError:
        return InputError(f"cannot read {path}: {error.strerror}; check data_dir, got {self.data_dir}")

    def _download(self, file: IDXFile, problem: str) -> None:
        size = len(file.shape) * 4 + 4 + int(np.prod(file.shape))
        largest = size + size // 1000 + 1024  # more than gzip can make of it at its worst
        try:
            content = download(f"{file.name}.gz", self.mirrors, largest, lambda body: self._unpacked(file, size, body))
        except InputError as error:
            raise InputError(
                f"{problem}, and {error}; put {self.source}'s files into {self.folder}, name other --data.mirrors, or "
                "use --data UCIDigits, which needs no download"
            ) from error
        write_atomic(self.folder / file.name, content)

    def _unpacked(self, file: IDXFile, size: int, compressed: bytes) -> bytes:
        """Return the verified content of a download."""
        decompressor = zlib.decompressobj(wbits=31)  # gzip
        content = decompressor.decompress(compressed, max_length=size + 1)
        if len(content) > size:
            raise ValueError(f"too large: unpacked more than {size:,} bytes")
        if not decompressor.eof:
            raise ConnectionError(f"cut off: {len(compressed):,} bytes arrived, {len(content):,} unpacked")
        if file.sha256:
            kind, digest, expected = "SHA-256", hashlib.sha256(content).hexdigest(), file.sha256
        else:
            import torchvision.datasets  # here, since it takes a while to import

            published = dict(getattr(torchvision.datasets, self.source).resources)
            kind, digest = "MD5", hashlib.md5(compressed, usedforsecurity=False).hexdigest()
            expected = published[f"{file.name}.gz"]
        if digest != expected:
            raise ValueError(f"wrong bytes: {kind} {digest} instead of {expected}")
        check_idx(content, len(content), file.name, file.shape)
        return content

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read one split: images ``(N, 28, 28)`` uint8, white on black, and their digits ``(N,)`` in 0-9."""
        images, labels = self.files[split]
        return self._read(images, self.memory_map), self._read(labels).astype(np.int64)

    def _read(self, file: IDXFile, memory_map: bool = False) -> NDArray[np.uint8]:
        path = self.folder / file.name
        try:
            return read_idx(path, file.shape, memory_map)
        except OSError as error:
            raise self._unreadable(path, error) from error


class FashionMNIST(MNIST):
    """70,000 pictures of ten kinds of clothing in MNIST's format, 10,000 of them the test set (Xiao et al. 2017).

    Reads ``<data_dir>/FashionMNIST/raw``. Downloads are checked by the MD5 that torchvision publishes for them,
    files that are there by their header and size.

    Args:
        data_dir: Folder that holds, or will hold, the data; MNIST_LIGHTNING_DATA sets the default.
        mirrors: Addresses to download from, https:// or http://, tried in turn; well-known https:// ones by default.
        memory_map: Whether the images stay on disk, mapped into memory, rather than being read into it.
        **kwargs: What every data module takes.
    """

    source = "FashionMNIST"
    # Its authors', and that of Keras; torchvision's has no https.
    default_mirrors = (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    )
    files: ClassVar[dict[Split, tuple[IDXFile, IDXFile]]] = {
        split: (images._replace(sha256=None), labels._replace(sha256=None))
        for split, (images, labels) in MNIST.files.items()
    }


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder and hold it against other processes that prepare the same data; leave nothing if it stays empty."""
    lock = folder / ".lock"
    try:
        with kept_if_used(folder), FileLock(lock):
            try:
                yield
            finally:
                # A process that still waits for the removed file gets its lock too; it then finds the files valid.
                lock.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; choose another data_dir") from error
