from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss
from torch.nn import functional as F

from mnist_lightning import MLP, DigitClassifier, UCIDigits
from mnist_lightning.errors import InputError


def trainer(tmp_path: Path, **kwargs: object) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return L.Trainer(**quiet, default_root_dir=tmp_path, **kwargs)


def test_training_is_the_plain_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DigitClassifier(MLP((30,), dropout=0.0))
    net = MLP((30,), dropout=0.0)
    net.load_state_dict(model.net.state_dict())
    data = UCIDigits(batch_size=64)
    seen = []
    data.on_before_batch_transfer = lambda batch, _: seen.append(batch) or batch  # type: ignore[method-assign]
    trainer(tmp_path, max_epochs=2, limit_val_batches=0, enable_checkpointing=False).fit(model, data)

    optimizer = torch.optim.Adam(net.parameters())
    for images, labels in seen:
        optimizer.zero_grad()
        F.cross_entropy(net(images.unsqueeze(1) / 255), labels).backward()
        optimizer.step()
    assert len(seen) == 2 * 18  # 1,150 images in batches of 64
    for mine, plain in zip(model.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-6)


def test_metrics_are_what_scikit_learn_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = DigitClassifier(MLP((16,))), UCIDigits(eval_batch_size=100)  # a last batch of 60 of 360
    run = trainer(tmp_path)
    run.test(model, data, verbose=False)
    predictions = run.predict(model, data)
    probabilities = torch.cat([batch["probabilities"] for batch in predictions]).numpy().astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    digits = torch.cat([batch["digit"] for batch in predictions]).numpy()
    confidences = torch.cat([batch["confidence"] for batch in predictions]).numpy()
    _, labels = data.load("test")

    assert (digits == probabilities.argmax(axis=1)).all()
    np.testing.assert_allclose(confidences, probabilities.max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(model.test_counts, confusion_matrix(labels, digits, labels=range(10)))
    assert run.callback_metrics == {}  # predict logs nothing
    run.test(model, data, verbose=False)
    assert run.callback_metrics["test/acc"].item() == pytest.approx((digits == labels).mean(), abs=1e-6)
    assert run.callback_metrics["test/loss"].item() == pytest.approx(log_loss(labels, probabilities), abs=1e-5)


def test_logged_training_metrics_and_learning_rate(tmp_path: Path) -> None:
    def halving(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    rates = []

    class Watch(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch:
                rates.append(trainer.callback_metrics["lr"].item())

    model = DigitClassifier(MLP((8,)), lr_scheduler=halving)
    run = trainer(tmp_path, max_epochs=3, limit_train_batches=2, callbacks=[Watch()], enable_checkpointing=False)
    run.fit(model, UCIDigits())
    rates.append(run.callback_metrics["lr"].item())
    assert rates == pytest.approx([1e-3, 5e-4, 2.5e-4])
    assert set(run.callback_metrics) == {"lr", "train/loss", "train/acc", "val/loss", "val/acc"}


def test_a_scheduler_can_step_with_each_update(tmp_path: Path) -> None:
    def one_cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=6)

    model = DigitClassifier(MLP((8,)), lr_scheduler=one_cycle, lr_scheduler_interval="step")
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=5, limit_val_batches=0, enable_checkpointing=False)
    run.fit(model, UCIDigits())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 5


def test_a_checkpoint_made_in_python_loads_weights_only(tmp_path: Path) -> None:
    model = DigitClassifier(MLP((8,)))
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    run.fit(model, UCIDigits())
    path = tmp_path / "model.ckpt"
    run.save_checkpoint(path)
    loaded = DigitClassifier.load_from_checkpoint(path, net=MLP((8,)), weights_only=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_precisions(tmp_path: Path, precision: str) -> None:
    model = DigitClassifier(MLP((8,)))
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2, precision=precision, enable_checkpointing=False)
    run.fit(model, UCIDigits())
    probabilities = run.predict(model, UCIDigits())[0]["probabilities"]
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(360), atol=1e-5, rtol=0)


def test_a_learning_rate_that_the_optimizer_refuses() -> None:
    model = DigitClassifier(MLP((8,)), optimizer=lambda params: torch.optim.Adam(params, lr=-1))
    with pytest.raises(InputError, match="Invalid learning rate: -1"):
        model.configure_optimizers()
