"""The convolutional network in a plain torch loop, with the augmentations of other libraries.

python benchmarks/peers/cnn_torch.py DATA_DIR EPOCHS IMAGES none|torchvision|kornia float32|bfloat16
"""

import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

Augment = Callable[[Tensor], Tensor]
SIGMA, SPREAD = (
    4.0,
    0.0407,
)  # smoothing in pixels; the standard deviation of uniform noise in (-1, 1) after it


def kornia_augmentation(elastic: float = 0.7) -> Augment:
    """Return this package's default deformations in kornia, drawn for each image.

    ``elastic`` 0 leaves one out.
    """
    from kornia.augmentation import AugmentationSequential, RandomAffine, RandomElasticTransform

    steps = [RandomAffine(15.0, (2 / 28, 2 / 28), (0.9, 1.1, 0.9, 1.1), (-10.0, 10.0), p=1.0)]
    if elastic:
        alpha = elastic / 14 / SPREAD  # kornia measures in half images
        steps.append(RandomElasticTransform((25, 25), (SIGMA, SIGMA), (alpha, alpha), p=1.0))
    return steps[0] if len(steps) == 1 else AugmentationSequential(*steps, data_keys=["input"])


def torchvision_augmentation(elastic: float = 0.7) -> Augment:
    """Return the same in torchvision, drawn once per call.

    All images of a batch are deformed alike.
    """
    from torchvision.transforms import InterpolationMode, v2

    bilinear = {"interpolation": InterpolationMode.BILINEAR}
    steps = [v2.RandomAffine(15.0, (2 / 28, 2 / 28), (0.9, 1.1), (-10.0, 10.0), **bilinear)]
    if elastic:
        steps.append(v2.ElasticTransform(2 * elastic / SPREAD, SIGMA, **bilinear))
    return v2.Compose(steps)


AUGMENTATIONS = {
    "none": nn.Identity,
    "torchvision": torchvision_augmentation,
    "kornia": kornia_augmentation,
}


def network() -> nn.Sequential:
    """Return the network of ``mnist_lightning.networks``."""
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(
        [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    ):
        layers += [
            nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
        ]
        layers += [nn.MaxPool2d(2)] if number in (1, 3) else []
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, 10)
    )


def main() -> None:
    from peer import load

    data_dir, epochs, images, augmentation, precision = sys.argv[1:]
    number, is_bf16 = int(images), precision == "bfloat16"
    x, y = [torch.tensor(array) for array in load(data_dir)[0]]
    x, y = x.unsqueeze(1).float().div_(255), y.long()
    val = slice(48_000, 48_000 + number // 4)
    net = network().to(memory_format=torch.channels_last if is_bf16 else torch.preserve_format)
    augment = AUGMENTATIONS[augmentation]()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=is_bf16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, int(epochs) * -(-number // 128))
    seconds = []
    for _ in range(int(epochs)):
        start = time.perf_counter()
        net.train()
        for rows in torch.randperm(number).split(128):
            images = augment(x[rows])
            with autocast:
                loss = nn.functional.cross_entropy(net(images), y[rows], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        net.eval()
        with torch.inference_mode(), autocast:
            hits = [
                net(a).argmax(1) == b
                for a, b in zip(x[val].split(1000), y[val].split(1000), strict=True)
            ]
        accuracy = torch.cat(hits).float().mean().item()
        seconds.append(round(time.perf_counter() - start, 3))
    print(json.dumps({"seconds": seconds, "val_accuracy": round(accuracy, 4)}))


if __name__ == "__main__":
    main()
