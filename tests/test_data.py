"""The base data module and UCIDigits; MNIST's files are in test_mnist.py."""

import re
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler

from mnist_lightning import MLP, DigitClassifier, UCIDigits
from mnist_lightning.data.base import DigitDataModule, GatheredDataset, GatheredLoader
from mnist_lightning.data.idx import read_idx
from mnist_lightning.errors import InputError


def ready(**kwargs: object) -> UCIDigits:
    data = UCIDigits(**kwargs)
    data.setup()
    return data


def in_any_order(images: torch.Tensor) -> list[bytes]:
    return sorted(image.tobytes() for image in images.numpy())


def test_a_gathered_batch_is_the_stacked_samples() -> None:
    images, labels = torch.arange(60).reshape(20, 3), torch.arange(20)
    rows = torch.tensor([3, 1, 4, 15, 9, 2, 6])
    dataset = GatheredDataset(images, labels, rows=rows)
    batch = dataset.__getitems__([5, 0, 3])
    for gathered, samples in zip(batch, zip(*[dataset[i] for i in (5, 0, 3)], strict=True), strict=True):
        torch.testing.assert_close(gathered, torch.stack(samples), rtol=0, atol=0)
    assert batch[1].tolist() == [2, 3, 15]
    assert len(dataset) == 7


@pytest.mark.parametrize("indices", [[4], [4, 5, 6], [4, 6, 5], [4, 5, 7], [6, 5, 4], [4, 4, 6], [0, 1, 2, 19]])
def test_any_rows_of_a_whole_data_set_are_gathered(indices: list[int]) -> None:
    images = torch.arange(60).reshape(20, 3)
    (gathered,) = GatheredDataset(images).__getitems__(indices)
    np.testing.assert_array_equal(gathered, images.numpy()[np.array(indices, int)])


@pytest.mark.parametrize("rows_at_once", [1, 64, 2048])
@pytest.mark.parametrize("batch_size", [7, 32, 300])
def test_a_loader_that_gathers_many_batches_gives_those_of_a_plain_one(
    rows_at_once: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GatheredLoader, "ROWS", rows_at_once)
    dataset = GatheredDataset(torch.arange(1000), torch.arange(2000).view(1000, 2), rows=torch.arange(999, -1, -2))
    kwargs = {"batch_size": batch_size, "shuffle": True}
    gathered = GatheredLoader(dataset, generator=torch.Generator().manual_seed(3), **kwargs)
    sampler = BatchSampler(RandomSampler(dataset, generator=torch.Generator().manual_seed(3)), batch_size, False)
    for _ in range(2):  # epochs
        batches, expected = list(gathered), list(sampler)
        assert len(batches) == len(gathered) == len(expected)
        for (numbers, pairs), indices in zip(batches, expected, strict=True):
            assert numbers.tolist() == [999 - 2 * index for index in indices]
            assert torch.equal(pairs, torch.stack([2 * numbers, 2 * numbers + 1], dim=1))


def test_the_split_is_80_20_without_overlap() -> None:
    data = ready()
    train, val = set(data.train_set.rows.tolist()), set(data.val_set.rows.tolist())
    assert (len(train), len(val), len(data.test_set)) == (1150, 287, 360)
    assert train | val == set(range(1437))
    assert not train & val


def test_the_split_follows_its_own_seed_only() -> None:
    torch.manual_seed(1)
    first = ready().val_set.rows
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(ready().val_set.rows, first)
    assert torch.equal(torch.get_rng_state(), state), "the split drew from the global generator"
    assert not torch.equal(ready(split_seed=1).val_set.rows, first)


def test_loaders_give_every_image_once() -> None:
    data = ready(batch_size=100, eval_batch_size=150)
    images, labels = (torch.cat(column) for column in zip(*data.train_dataloader(), strict=True))
    assert images.dtype == torch.uint8
    assert len(images) == 1150
    assert not torch.equal(labels, data.train_set.tensors[1][data.train_set.rows]), "not shuffled"
    # Shuffling permutes the pairs and changes none: compare as sorted bytes.
    expected = data.train_set.tensors[0][data.train_set.rows]
    assert in_any_order(images) == in_any_order(expected)
    test_images, test_labels = (torch.cat(column) for column in zip(*data.test_dataloader(), strict=True))
    source_images, source_labels = data.load("test")
    np.testing.assert_array_equal(test_images.numpy(), source_images)
    np.testing.assert_array_equal(test_labels.numpy(), source_labels)
    assert [len(batch[0]) for batch in data.predict_dataloader()] == [150, 150, 60]
    assert all(len(batch) == 1 for batch in data.predict_dataloader())


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_evaluate_every_image_once(world_size: int) -> None:
    data = ready(eval_batch_size=50)
    images = {name: [] for name in ("val", "test", "predict")}
    for rank in range(world_size):
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)
        for name, found in images.items():
            found += [batch[0] for batch in getattr(data, f"{name}_dataloader")()]
    found = {name: in_any_order(torch.cat(batches)) for name, batches in images.items()}
    assert found["val"] == in_any_order(data.val_set.tensors[0][data.val_set.rows])
    assert found["test"] == found["predict"] == in_any_order(data.test_set.tensors[0])


class Brighten(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 1


@pytest.mark.parametrize(("training", "offset"), [(True, 1), (False, 0)])
def test_batches_are_scaled_and_augmented_in_training_only(training: bool, offset: int) -> None:
    data = UCIDigits(augmentation=Brighten())
    data.trainer = L.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", enable_checkpointing=False)
    data.trainer.strategy.connect(DigitClassifier(MLP()))
    data.trainer.training = training
    raw = torch.arange(2 * 784).reshape(2, 28, 28).byte()
    images, labels = data.on_after_batch_transfer((raw, torch.tensor([1, 2])), 0)
    assert images.shape == (2, 1, 28, 28)
    np.testing.assert_allclose(images[:, 0].numpy(), raw.numpy() / 255 + offset, rtol=1e-6)
    assert labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": -1}, "eval_batch_size must be at least 1, got -1"),
        ({"val_fraction": 0.0}, r"val_fraction must be inside \(0, 1\), got 0.0"),
        ({"val_fraction": 1.0}, r"val_fraction must be inside \(0, 1\), got 1.0"),
    ],
)
def test_values_out_of_range_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        UCIDigits(**kwargs)


def test_a_fraction_that_leaves_a_split_empty_is_refused() -> None:
    with pytest.raises(InputError, match=r"val_fraction 0.0001 of 1437 images leaves a split empty"):
        ready(val_fraction=1e-4)


def test_labels_outside_0_to_9_are_refused() -> None:
    class Wrong(DigitDataModule):
        def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((5, 28, 28), np.uint8), np.array([0, 1, 2, 3, 10])

    with pytest.raises(InputError, match="labels must be 0-9, got 0 to 10 in the train split of Wrong"):
        Wrong().setup("fit")


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        (np.zeros((5, 28, 28), np.float32), np.zeros(5, int), "float32 (5, 28, 28) for 5 labels"),
        (np.zeros((5, 784), np.uint8), np.zeros(5, int), "uint8 (5, 784) for 5 labels"),
        (np.zeros((5, 28, 28), np.uint8), np.zeros(4, int), "uint8 (5, 28, 28) for 4 labels"),
    ],
)
def test_a_source_that_loads_something_else_is_refused(images: np.ndarray, labels: np.ndarray, found: str) -> None:
    class Wrong(DigitDataModule):
        def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
            return images, labels

    with pytest.raises(InputError, match=re.escape(f"must be uint8 (N, 28, 28), got {found} in the train split")):
        Wrong().setup("fit")


def test_labels_of_any_integer_type_will_do_and_live_objects_stay_out_of_the_hyperparameters() -> None:
    class Source(DigitDataModule):
        def __init__(self, folder: Path) -> None:
            super().__init__(batch_size=7)

        def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((5, 28, 28), np.uint8), np.arange(5, dtype=np.int32)

    data = Source(Path())
    data.setup("test")
    assert next(iter(data.test_dataloader()))[1].dtype == torch.int64
    assert data.hparams["batch_size"] == 7
    assert "folder" not in data.hparams


def test_fit_never_reads_the_test_split() -> None:
    read = []

    class Watched(UCIDigits):
        def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
            read.append(split)
            return super().load(split)

    model = DigitClassifier(MLP((8,)))
    data = Watched()
    run = L.Trainer(fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    run.fit(model, data)
    run.validate(model, data, verbose=False)
    assert read == ["train"]  # once: setup is idempotent
    run.test(model, data, verbose=False)
    assert read == ["train", "test"]


def test_uci_digits_are_scikit_learns_fixed_and_stratified() -> None:
    data = UCIDigits()
    (train, train_labels), (test, test_labels) = data.load("train"), data.load("test")
    assert (train.shape, test.shape) == ((1437, 28, 28), (360, 28, 28))
    assert train.dtype == np.uint8
    everything = np.concatenate([train_labels, test_labels])
    np.testing.assert_array_equal(np.bincount(everything), np.bincount(load_digits().target))
    # Stratified: a digit's share of the test set is its share of all, to the nearest image.
    assert np.abs(np.bincount(test_labels) - np.bincount(everything) / 5).max() < 1
    np.testing.assert_array_equal(test, UCIDigits().load("test")[0])
    # Digits in a frame of four black pixels, as MNIST's are, with as much ink as the originals.
    assert train[:, :4].max() == train[:, -4:].max() == train[:, :, :4].max() == train[:, :, -4:].max() == 0
    ink = load_digits().images.mean() / 16 * 255 * (20 / 28) ** 2
    assert np.concatenate([train, test]).mean() == pytest.approx(ink, rel=0.01)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x has 0 bytes instead of 14"),
        (b"\0\0\x08\x01\0\0\0\x06abcde", "x has 13 bytes instead of 14"),
        (b"\0\0\x08\x01\0\0\0\x06abcdefg", "x has 15 bytes instead of 14"),
        (b"\0\0\x0d\x01\0\0\0\x06abcdef", "x is no IDX file of .6,. bytes: it starts with 00000d0100000006"),
        (b"\0\0\x08\x01\0\0\0\x07abcdef", "it starts with 0000080100000007"),
    ],
)
def test_idx_files_of_another_size_or_kind_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    for memory_map in (False, True):
        with pytest.raises(InputError, match=message):
            read_idx(tmp_path / "x", (6,), memory_map)


@pytest.mark.parametrize("memory_map", [False, True])
def test_idx_content_is_read(memory_map: bool, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef")
    array = read_idx(tmp_path / "x", (2, 3), memory_map)
    np.testing.assert_array_equal(array, [[97, 98, 99], [100, 101, 102]])
    assert isinstance(array, np.memmap) == memory_map
