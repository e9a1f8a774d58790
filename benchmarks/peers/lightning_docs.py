"""The default recipe as a Lightning script the way its docs teach it.

Torchvision + ToTensor + DataLoader.

python benchmarks/peers/lightning_docs.py DATA_DIR EPOCHS SEED
"""

import tempfile
import time
import warnings

import lightning as L
import torch
import torchmetrics
from peer import arguments, report
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision import transforms
from torchvision.datasets import MNIST

warnings.filterwarnings("ignore")
data_dir, epochs, seed = arguments()


class Module(L.LightningModule):
    """The network, with its loss and accuracy logged."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 128),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 10),
        )
        stages = ("train_acc", "val_acc", "test_acc")
        self.acc = nn.ModuleDict(
            {stage: torchmetrics.Accuracy("multiclass", num_classes=10) for stage in stages}
        )

    def step(self, batch, stage):
        """Log a batch's loss and accuracy; return the loss."""
        x, y = batch
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.acc[stage + "_acc"](logits, y)
        self.log(f"{stage}/loss", loss, prog_bar=True)
        self.log(
            f"{stage}/acc", self.acc[stage + "_acc"], on_step=False, on_epoch=True, prog_bar=True
        )
        return loss

    def training_step(self, batch, batch_idx):  # noqa: D102
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):  # noqa: D102
        self.step(batch, "val")

    def test_step(self, batch, batch_idx):  # noqa: D102
        self.step(batch, "test")

    def configure_optimizers(self):  # noqa: D102
        return torch.optim.Adam(self.parameters())


L.seed_everything(seed)
to_tensor = transforms.ToTensor()
train, val = random_split(MNIST(data_dir, train=True, transform=to_tensor), [48_000, 12_000])
with tempfile.TemporaryDirectory() as out:
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=out)
    module = Module()
    start = time.perf_counter()
    trainer.fit(
        module, DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=32)
    )
    seconds = time.perf_counter() - start
    test = DataLoader(MNIST(data_dir, train=False, transform=to_tensor), batch_size=1000)
    result = trainer.test(module, test, verbose=False)[0]
report(seconds, result["test/acc"])
