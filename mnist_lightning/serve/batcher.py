"""Classify the images of many requests together."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.inference import AT_ONCE

Floats = NDArray[np.float32]
Request = tuple[Floats, asyncio.Future[Floats]]  # images, and the answer that waits for them


class Batcher:
    """One thread computes; what comes meanwhile waits, and is computed together next.

    Nothing waits for a timer.

    Args:
        classify: From images ``(N, 28, 28)`` in [0, 1] to probabilities ``(N, 10)``.
    """

    def __init__(self, classify: Callable[[Floats], Floats]) -> None:
        self.classify = classify
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[Request] = deque()
        self.worker: asyncio.Task[None] | None = None

    async def __call__(self, images: Floats) -> Floats:
        """Return the probabilities ``(N, 10)`` of images ``(N, 28, 28)`` in [0, 1]."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Floats] = loop.create_future()
        self.waiting.append((images, answer))
        if self.worker is None or self.worker.done():
            self.worker = loop.create_task(self.work())
        return await answer

    async def work(self) -> None:
        """Compute until nothing waits."""
        loop = asyncio.get_running_loop()
        while self.waiting:
            batch = self.next_batch()
            images = np.concatenate([images for images, _ in batch])
            try:
                rows = await loop.run_in_executor(self.thread, self.classify, images)
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():  # it is, if the request was given up
                        answer.set_exception(error)
                continue
            start = 0
            for images, answer in batch:
                stop = start + len(images)
                if not answer.done():
                    answer.set_result(rows[start:stop])
                start = stop

    def next_batch(self) -> list[Request]:
        """Take requests that wait: one, and more while there are at most ``AT_ONCE`` images."""
        batch = [self.waiting.popleft()]
        number = len(batch[0][0])
        while self.waiting and number + len(self.waiting[0][0]) <= AT_ONCE:
            batch.append(self.waiting.popleft())
            number += len(batch[-1][0])
        return batch
