"""Measuring images in a thread of its own, while the next ones are sampled: for a GPU, which has room for both."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from autodiffusion_opt.objective.image_objective import Measurement

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Blocks of images that may wait to be measured; more of them would only take memory.
WAITING = 2


class Streamed:
    """A measurement that takes blocks at once and measures them in their order, behind the sampler.

    An error of the measurement is raised by one of the next calls.

    Args:
        measurement: what is done with the blocks.
        device: where the images are; a GPU measures on a stream of its own.
    """

    def __init__(self, measurement: Measurement, device: torch.device) -> None:
        self._measurement = measurement
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # One thread, so that blocks keep their order; it ends with this object.
        self._thread = ThreadPoolExecutor(1, "measuring")
        self._pending: deque[Future[None]] = deque()

    def add(self, images: torch.Tensor) -> None:
        """uint8 (N, C, H, W); waits while too many blocks are not measured yet."""
        self._wait(WAITING - 1)
        made = None if self._stream is None else torch.cuda.current_stream(images.device).record_event()
        self._pending.append(self._thread.submit(self._measure, images, made))

    def values(self, *, is_last: bool) -> Mapping[str, float]:
        """Of all images that were added."""
        self._wait(0)
        return self._measurement.values(is_last=is_last)

    def of_images(self) -> NDArray[np.float64] | None:
        """A number for each image, where the value is their mean."""
        self._wait(0)
        return self._measurement.of_images()

    def _wait(self, count: int) -> None:
        """Until at most ``count`` blocks are not measured."""
        while len(self._pending) > count:
            self._pending.popleft().result()

    def _measure(self, images: torch.Tensor, made: Any) -> None:
        if self._stream is not None:
            self._stream.wait_event(made)
            images.record_stream(self._stream)  # their memory is not given away before they are measured
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            self._measurement.add(images)
