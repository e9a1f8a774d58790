"""Classify the images of many requests together."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.models.classify import AT_ONCE


class Batcher:
    """One thread computes; what comes meanwhile waits, and is computed together next. Nothing waits for a timer.

    Args:
        classify: From images ``(N, 28, 28)`` in [0, 1] to probabilities ``(N, 10)``.
    """

    def __init__(self, classify: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        self.classify = classify
        self.thread = ThreadPoolExecutor(1)
        self.waiting: list[tuple[NDArray[np.float32], asyncio.Future[NDArray[np.float32]]]] = []
        self.worker: asyncio.Task[None] | None = None

    async def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities ``(N, 10)`` of images ``(N, 28, 28)`` in [0, 1]."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[NDArray[np.float32]] = loop.create_future()
        self.waiting.append((images, answer))
        if self.worker is None or self.worker.done():
            self.worker = loop.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self.waiting:
            number = 1 + sum(np.cumsum([len(images) for images, _ in self.waiting])[1:] <= AT_ONCE)
            batch, self.waiting = self.waiting[:number], self.waiting[number:]
            try:
                images = np.concatenate([images for images, _ in batch])
                loop = asyncio.get_running_loop()
                rows = await loop.run_in_executor(self.thread, self.classify, images)
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():  # it is, if the request was given up
                        answer.set_exception(error)
                continue
            ends = np.cumsum([len(images) for images, _ in batch])
            for (_, answer), part in zip(batch, np.split(rows, ends[:-1]), strict=True):
                if not answer.done():
                    answer.set_result(part)
