"""Measuring behind the sampler: the same values, in order, with errors that arrive and a bounded queue."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from autodiffusion_opt import Candidate, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.objective.streamed import WAITING, Streamed
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.space import ModelInfo

CPU = torch.device("cpu")
UNEVEN = Candidate.from_time_steps([926, 690, 424, 153])

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


class Slow:
    """Measures a block when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.seen: list[int] = []

    def add(self, images: torch.Tensor) -> None:
        assert self.go.acquire(timeout=30)
        if len(images) == 0:
            raise UserError("no images")
        self.seen.append(int(images[0]))

    def values(self, *, is_last: bool) -> dict[str, float]:
        return {"count": len(self.seen), "is_last": is_last}

    def of_images(self) -> None:
        return None


def block(number: int) -> torch.Tensor:
    return torch.full((3,), number)


def test_blocks_are_taken_before_they_are_measured_and_measured_in_order() -> None:
    slow = Slow()
    streamed = Streamed(slow, CPU)
    for number in range(WAITING):
        streamed.add(block(number))  # returns though nothing was measured
    assert slow.seen == []
    later = threading.Thread(target=lambda: [streamed.add(block(number)) for number in range(WAITING, 6)])
    later.start()
    later.join(timeout=0.2)
    assert later.is_alive()  # the queue is full
    slow.go.release(6)
    later.join(timeout=30)
    assert streamed.values(is_last=True) == {"count": 6, "is_last": True}
    assert slow.seen == list(range(6))
    assert streamed.of_images() is None


def test_an_error_of_the_measurement_is_raised() -> None:
    slow = Slow()
    slow.go.release(9)
    streamed = Streamed(slow, CPU)
    streamed.add(torch.zeros(0))
    with pytest.raises(UserError, match="no images"):
        streamed.values(is_last=False)


def test_the_thread_ends_with_the_measurement() -> None:
    streamed = Streamed(Slow(), CPU)
    streamed._measurement.go.release()  # type: ignore[attr-defined]
    streamed.add(block(0))
    [thread] = [thread for thread in threading.enumerate() if thread.name.startswith("measuring")]
    del streamed
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fid", "kid", "psnr", "paired", "rfid"])
def test_values_are_those_of_measuring_in_turn(kind: str, digits: Any) -> None:
    table = {"kind": kind, "images": [100, 120]}
    table |= {} if kind == "psnr" else {"features": "digits"}
    table |= {"reference": "digits"} if kind in ("fid", "kid") else {"teacher_steps": 8}
    config = build(METRICS[kind].Config, table, "here")
    objective: Any = config.objective(ImageSampler(digits, micro_batch=20, batch_size=20), ModelInfo(1000), Path())
    streamed = dataclasses.replace(objective, start=lambda *given: Streamed(objective.start(*given), CPU))
    in_turn, behind = ([score.values for score in each.measure(UNEVEN)] for each in (objective, streamed))
    assert in_turn == behind
