"""Denormal numbers are zero while ``fit`` trains, on each thread, and are back afterwards."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mnist_lightning import CNN, DigitClassifier, UCIDigits, fit
from mnist_lightning.training.denormals import flushed_denormals


def share_of_zeros() -> float:
    """Return which share of many denormal numbers is zero for the threads that share the work."""
    numbers = torch.full((1_000_000,), 1e-40)
    bits = (numbers * 1).view(torch.int32)  # a comparison would flush them too
    return (bits == 0).double().mean().item()


@pytest.fixture
def two_threads():
    """Let torch compute on two threads, which have started."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert share_of_zeros() == 0
    yield
    torch.set_num_threads(before)


class Watch(Callback):
    """Keeps the share of zeros in training and in validation."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.seen.append(share_of_zeros())

    on_validation_batch_end = on_train_batch_end


class OwnLoop(Watch):
    """Its hook makes Lightning's own loop run."""

    def on_after_backward(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("watch", [Watch, OwnLoop])
def test_fit_flushes_on_each_thread(watch, two_threads, tmp_path):
    seen = watch()
    fit(
        DigitClassifier(CNN(2)),
        UCIDigits(),
        log_dir=tmp_path,
        max_epochs=1,
        callbacks=[seen],
        accelerator="cpu",
    )
    assert len(seen.seen) > 36
    assert set(seen.seen) == {1.0}
    assert share_of_zeros() == 0
    assert torch.get_num_threads() == 2


def test_flag_is_put_back_after_an_error(two_threads):
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert share_of_zeros() == 0


def test_flag_of_the_user_stays(two_threads):
    with flushed_denormals():
        with flushed_denormals():
            assert share_of_zeros() == 1
        assert share_of_zeros() == 1
    assert share_of_zeros() == 0
