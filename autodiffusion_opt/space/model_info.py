"""What a space must know of the model: numbers only, so that no space needs torch or diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autodiffusion_opt.errors import UserError

# How often each step calls the denoiser; `cost.calls` has the numbers.
Layout = Literal["once", "heun", "plms"]
THIRDS = 3
# A noise level below this is taken as this, so that its logarithm is finite.
LEAST_SIGMA = 1e-10
# A flow's time is taken to lie at least this share of the range inside it, for the same reason.
LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class ModelInfo:
    """The numbers of a model that bound what may be chosen.

    ``ModelInfo(train_steps=1000)`` is enough for a space of integer time steps, without any pipeline.

    Attributes:
        train_steps: T, the number of time steps the model was trained with.
        lowest: the lowest time that its scheduler accepts.
        highest: the highest time; ``train_steps - 1`` where it is not given.
        continuous: whether times between the integers may be given.
        stops_early: whether a last step may stop before the image, at an end time.
        steps_offset: what the scheduler's own "leading" spacing adds to each time.
        sigmas: noise levels σ = √((1-ᾱ)/ᾱ) at times 0 .. T-1, ascending; empty where the model has none
            (flow matching). With them, the baselines that are defined by noise levels exist.
        shift: of a flow matching model: the baselines' noise levels σ become s·σ / (1 + (s - 1)·σ), as its own do.
        layout: how often each step calls the denoiser: ``once``, or as ``heun`` (and KDPM2) or ``plms`` do.
        layers: L, the number of layers of the denoiser; 0 where they were not counted.
        removable: indices of the layers that may be left out.
        ranking: for each third of the time range, noise to image, the removable layers from the one whose removal
            changes the denoiser's output least; empty where it was not measured.
        flops: FLOPs of one whole forward pass for one image; 0 where they were not counted.
        layer_flops: FLOPs that are saved when layer i is removed; empty where they were not counted.
        branch_flops: FLOPs of a partial step at branch b, the cheapest first; empty where the denoiser has no branches
            or they were not counted.
        branch_layers: the layers that a partial step at branch b runs, ascending; as many entries.
        ays: the ten times of "Align Your Steps" for this model, noise to image; empty where it has none.

    Raises:
        UserError: for numbers that contradict each other.
    """

    train_steps: int
    lowest: float = 0.0
    highest: float = -1.0
    continuous: bool = False
    stops_early: bool = True
    steps_offset: int = 0
    sigmas: tuple[float, ...] = ()
    shift: float = 1.0
    layout: Layout = "once"
    layers: int = 0
    removable: tuple[int, ...] = ()
    ranking: tuple[tuple[int, ...], ...] = ()
    flops: int = 0
    layer_flops: tuple[int, ...] = ()
    branch_flops: tuple[int, ...] = ()
    branch_layers: tuple[tuple[int, ...], ...] = ()
    ays: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.train_steps < 1:
            raise UserError(f"train_steps must be 1 or more; got {self.train_steps}")
        if self.highest < 0:
            object.__setattr__(self, "highest", float(self.train_steps - 1))
        if not 0 <= self.lowest <= self.highest:
            raise UserError(f"lowest must be from 0 to highest, {self.highest:g}; got {self.lowest:g}")
        outside = [layer for layer in self.removable if not 0 <= layer < self.layers]
        if outside:
            raise UserError(f"removable must be indices of the {self.layers} layers; got {outside}")
        if len(self.layer_flops) not in (0, self.layers):
            raise UserError(f"layer_flops must have {self.layers} entries, one a layer; got {len(self.layer_flops)}")
        if len(self.branch_flops) != len(self.branch_layers):
            raise UserError(
                "branch_flops and branch_layers must have an entry for each branch; got "
                f"{len(self.branch_flops)} and {len(self.branch_layers)}"
            )

    @property
    def branch_shares(self) -> tuple[float, ...]:
        """What a partial step at each branch costs, as a share of a full step's FLOPs."""
        return tuple(flops / self.flops for flops in self.branch_flops) if self.flops else ()

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The least and the greatest training noise level above zero."""
        positive = [sigma for sigma in self.sigmas if sigma > 0]
        return positive[0], positive[-1]

    def times_of_sigmas(self, sigmas: NDArray[np.float64]) -> tuple[float, ...]:
        """Times at which the model was trained with these noise levels; log σ is linear between integer times."""
        log_sigmas = np.log(np.maximum(np.asarray(self.sigmas), LEAST_SIGMA))
        return tuple(float(t) for t in np.interp(np.log(sigmas), log_sigmas, np.arange(len(log_sigmas))))

    def log_snr(self, times: Sequence[float]) -> NDArray[np.float64]:
        """λ = ln(α/σ), half the logarithm of the signal-to-noise ratio, at times; shape (len(times),).

        Linear between integer times. A model without noise levels is taken for a flow matching one: α = 1 - t/T,
        σ = t/T.
        """
        if self.sigmas:
            log_sigmas = np.log(np.maximum(np.asarray(self.sigmas), LEAST_SIGMA))
            return np.asarray(-np.interp(times, np.arange(len(log_sigmas)), log_sigmas))
        share = np.clip(np.asarray(times, dtype=np.float64) / self.train_steps, LEAST_SHARE, 1 - LEAST_SHARE)
        return np.asarray(np.log((1 - share) / share))

    def times_of_log_snr(self, log_snr: NDArray[np.float64]) -> tuple[float, ...]:
        """Times at which λ = ln(α/σ) is as given (:meth:`log_snr`); the nearest end where it is beyond all times."""
        if self.sigmas:
            return self.times_of_sigmas(np.exp(-log_snr))
        times = self.train_steps / (1 + np.exp(log_snr))
        return tuple(float(time) for time in np.clip(times, self.lowest, self.highest))

    def respaced(self, times: Sequence[float], steps: int) -> tuple[float, ...]:
        """Another number of times with the spacing of ``times``.

        K times are the middles of K equal parts of the schedule; λ (:meth:`log_snr`) is linear between these, and on
        beyond the first and the last.
        """
        if len(times) == steps:
            return tuple(times)
        levels, given = self.log_snr(times), (np.arange(len(times)) + 0.5) / len(times)
        wanted = (np.arange(steps) + 0.5) / steps
        log_snr = np.interp(wanted, given, levels)
        if len(times) > 1:
            for end, beyond in ((0, wanted < given[0]), (-1, wanted > given[-1])):
                inner = 1 if end == 0 else -2
                slope = (levels[end] - levels[inner]) / (given[end] - given[inner])
                log_snr[beyond] = levels[end] + slope * (wanted[beyond] - given[end])
        return self.times_of_log_snr(log_snr)

    def middles(self, times: Sequence[float]) -> tuple[float, ...]:
        """Times in the middles of the gaps in λ between times from noise to image, the widest first; before the first
        time and after the last there is a gap as wide as the next."""
        levels = self.log_snr(times)
        widths = np.diff(levels) if len(levels) > 1 else np.ones(1)
        ends = np.array([levels[0] - widths[0], *levels, levels[-1] + widths[-1]])
        order = np.argsort(-np.diff(ends), kind="stable")
        return self.times_of_log_snr(((ends[:-1] + ends[1:]) / 2)[order])


def third_of(time: float, lowest: float, highest: float) -> int:
    """In which third of the time range a time lies: 0 near the noise, 2 near the image; a boundary is the later's."""
    if highest <= lowest:
        return 0
    return min(max(int(THIRDS * (highest - time) / (highest - lowest)), 0), THIRDS - 1)
