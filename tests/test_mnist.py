"""MNIST's files: found, verified, downloaded from a mirror on loopback that behaves, and refused."""

import gzip
import hashlib
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from mirror import mirror

from mnist_lightning import MNIST, FashionMNIST
from mnist_lightning.errors import InputError


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_real_mnist_is_what_torchvision_reads(real_mnist: Path) -> None:
    data = MNIST(str(real_mnist))
    data.prepare_data()
    for split in ("train", "test"):
        images, labels = data.load(split)
        reference = torchvision.datasets.MNIST(str(real_mnist), train=split == "train")
        np.testing.assert_array_equal(images, reference.data.numpy())
        np.testing.assert_array_equal(labels, reference.targets.numpy())


def test_real_mnist_is_downloaded_whole(real_mnist: Path, tmp_path: Path) -> None:
    raw = real_mnist / "MNIST/raw"
    names = [file.name for files in MNIST.files.values() for file in files]
    served = {f"{name}.gz": gzip.compress((raw / name).read_bytes(), compresslevel=1) for name in names}
    with mirror(served) as (address, _):
        MNIST(str(tmp_path), mirrors=[address]).prepare_data()
    assert files_below(tmp_path) == {f"MNIST/raw/{name}": (raw / name).read_bytes() for name in names}


def test_a_download_is_whole_and_leaves_only_the_four_files(
    gzipped: dict[str, bytes], tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    with mirror(gzipped) as (address, requested):
        MNIST(str(tmp_path / "new"), mirrors=[address]).prepare_data()
        assert sorted(requested) == sorted(gzipped)
    assert files_below(tmp_path / "new") == {f"MNIST/raw/{name}": content for name, content in tiny_files.items()}


def test_what_a_killed_process_left_is_removed(
    gzipped: dict[str, bytes], tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name in (".lock", ".train-images-idx3-ubyte.x1y2z3.part"):
        (raw / name).write_bytes(b"half")
    with mirror(gzipped) as (address, _):
        MNIST(str(tmp_path), mirrors=[address]).prepare_data()
    assert files_below(raw) == tiny_files


def test_valid_files_need_no_network(tiny_mnist: Path) -> None:
    with mirror({}) as (address, requested):
        MNIST(str(tiny_mnist), mirrors=[address]).prepare_data()
    assert requested == []


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:-1] + b"\1", lambda b: b""])
def test_a_corrupt_file_is_replaced(gzipped: dict[str, bytes], tiny_mnist: Path, damage: object) -> None:
    before = files_below(tiny_mnist)
    path = tiny_mnist / "MNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with mirror(gzipped) as (address, requested):
        MNIST(str(tiny_mnist), mirrors=[address]).prepare_data()
    assert requested == ["t10k-images-idx3-ubyte.gz"]
    assert files_below(tiny_mnist) == before


def test_a_corrupt_file_offline_is_refused_and_kept(tiny_mnist: Path) -> None:
    path = tiny_mnist / "MNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    before = files_below(tiny_mnist)
    with pytest.raises(InputError) as error:
        MNIST(str(tiny_mnist), mirrors=[]).prepare_data()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert error.match(
        f"train-labels-idx1-ubyte is corrupt: SHA-256 {digest} instead of {MNIST.files['train'][1].sha256}"
    )
    assert files_below(tiny_mnist) == before


def test_threads_that_need_the_data_download_it_once(gzipped: dict[str, bytes], tmp_path: Path) -> None:
    with mirror(gzipped) as (address, requested):
        modules = [MNIST(str(tmp_path), mirrors=[address]) for _ in range(4)]
        threads = [threading.Thread(target=module.prepare_data) for module in modules]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(requested) == sorted(gzipped)


def test_a_folder_that_cannot_be_used(tmp_path: Path, tiny_files: dict[str, bytes]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot read .*file/MNIST/raw/.*: Not a directory; check data_dir, got "):
        MNIST(str(tmp_path / "file"), mirrors=[]).prepare_data()
    # No user, not even root, can make a folder there.
    with pytest.raises(InputError, match=r"cannot write to /proc/new/MNIST/raw: .*; choose another data_dir"):
        MNIST("/proc/new", mirrors=[]).prepare_data()
    with pytest.raises(InputError, match=r"cannot read .*none/MNIST/raw/train-images-idx3-ubyte: No such file"):
        MNIST(str(tmp_path / "none")).setup("fit")


def test_fashion_mnist_is_checked_by_torchvisions_md5(
    gzipped: dict[str, bytes], tiny_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {s: tuple(file._replace(sha256=None) for file in files) for s, files in MNIST.files.items()}
    monkeypatch.setattr(FashionMNIST, "files", tiny)
    with mirror(gzipped) as (address, _):
        data = FashionMNIST(str(tmp_path), mirrors=[address])
        published = dict(torchvision.datasets.FashionMNIST.resources)["train-images-idx3-ubyte.gz"]
        with pytest.raises(InputError, match=f"wrong bytes: MD5 [0-9a-f]{{32}} instead of {published}"):
            data.prepare_data()
        md5s = [(name, hashlib.md5(body).hexdigest()) for name, body in gzipped.items()]
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", md5s)
        data.prepare_data()
    assert files_below(tmp_path) == {f"FashionMNIST/raw/{name}": body for name, body in tiny_files.items()}
    (tmp_path / "FashionMNIST/raw/train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(InputError, match="train-labels-idx1-ubyte has 0 bytes instead of 208, and no mirror has it"):
        FashionMNIST(str(tmp_path), mirrors=[]).prepare_data()


def test_memory_mapped_images_stay_on_disk_and_are_the_same(tiny_mnist: Path) -> None:
    with warnings.catch_warnings(action="error"):
        read, mapped = MNIST(str(tiny_mnist)), MNIST(str(tiny_mnist), memory_map=True)
        for data in (read, mapped):
            data.setup("fit")
    assert isinstance(mapped.load("train")[0], np.memmap)
    assert not isinstance(read.load("train")[0], np.memmap)
    for mine, theirs in zip(mapped.val_dataloader(), read.val_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
