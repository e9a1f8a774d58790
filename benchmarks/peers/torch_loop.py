"""The default recipe as a plain torch loop: tensors in memory, fused Adam, nothing logged.

python benchmarks/peers/torch_loop.py DATA_DIR EPOCHS SEED

With FLUSH_DENORMALS=1 in the environment the processor computes with zero instead of denormals.
"""

import os
import time

import torch
from peer import arguments, load, report
from torch import nn

data_dir, epochs, seed = arguments()
torch.set_flush_denormal(os.environ.get("FLUSH_DENORMALS") == "1")  # before threads start
torch.manual_seed(seed)
(x, y), (xe, ye) = [
    (torch.tensor(a).float().div_(255), torch.tensor(b).long()) for a, b in load(data_dir)
]
order = torch.randperm(60_000)
train, val = order[:48_000], order[48_000:]
net = nn.Sequential(
    nn.Flatten(),
    nn.Linear(784, 128),
    nn.ReLU(),
    nn.Dropout(0.2),
    nn.Linear(128, 64),
    nn.ReLU(),
    nn.Dropout(0.2),
    nn.Linear(64, 10),
)
optimizer = torch.optim.Adam(net.parameters(), fused=True)
start = time.perf_counter()
for _ in range(epochs):
    net.train()
    for i in train[torch.randperm(48_000)].split(32):
        loss = nn.functional.cross_entropy(net(x[i]), y[i])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    net.eval()
    with torch.no_grad():
        val_accuracy = (net(x[val]).argmax(1) == y[val]).float().mean().item()
seconds = time.perf_counter() - start
with torch.no_grad():
    accuracy = (net(xe).argmax(1) == ye).float().mean().item()
report(seconds, accuracy, val_accuracy=round(val_accuracy, 4), threads=torch.get_num_threads())
