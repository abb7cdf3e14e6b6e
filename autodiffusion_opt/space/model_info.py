"""What a space must know of the model: numbers only, so that no space needs torch or diffusers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ModelInfo:
    """Attributes of a pipeline that problem what may be chosen.

    Attributes:
        train_steps: T, the number of time steps the model was trained with.
        lowest: the lowest time that its scheduler accepts.
        highest: the highest.
        continuous: whether times between the integers may be given.
        steps_offset: what the scheduler's own "leading" spacing adds.
        sigmas: noise levels σ = sqrt((1-ā)/ā) of times 0 .. T-1, ascending; empty where the model has none
            (flow matching).
        calls_per_step: calls of the denoiser that one step makes (2 for Heun).
        extra_calls: calls beyond that, over all steps: -1 for Heun, whose last step makes one; 1 for PNDM.
        layers: L, the number of layers of the denoiser; 0 where nobody counted.
        removable: indices of the layers that may be left out.
        ranking: for each third of the time range, noise to image, the removable layers from the one whose removal
            changes the denoiser's output least; empty where it was not measured.
        ays: the ten times of "Align Your Steps" for this model, noise to image; empty where it has none.
    """

    train_steps: int
    lowest: float = 0.0
    highest: float = 999.0
    continuous: bool = False
    steps_offset: int = 0
    sigmas: tuple[float, ...] = ()
    calls_per_step: int = 1
    extra_calls: int = 0
    layers: int = 0
    removable: tuple[int, ...] = ()
    ranking: tuple[tuple[int, ...], ...] = ()
    ays: tuple[float, ...] = ()

    def steps_of_nfe(self, nfe: int) -> int:
        """How many steps that many calls of the denoiser allow."""
        return (nfe - self.extra_calls) // self.calls_per_step

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The least and the greatest training noise level above zero."""
        positive = [sigma for sigma in self.sigmas if sigma > 0]
        return positive[0], positive[-1]

    def times_of_sigmas(self, sigmas: NDArray[np.float64]) -> tuple[float, ...]:
        """Times at which the model was trained with these noise levels, log σ linear between integer times."""
        known = np.log(np.maximum(np.asarray(self.sigmas), 1e-10))
        return tuple(float(t) for t in np.interp(np.log(sigmas), known, np.arange(len(known))))


def third_of(time: float, lowest: float, highest: float) -> int:
    """In which third of the time range a time lies: 0 near the noise, 2 near the image."""
    if highest <= lowest:
        return 0
    return min(max(int(3 * (highest - time) / (highest - lowest)), 0), 2)
