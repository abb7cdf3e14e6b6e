"""``kind = "clip-score"``: how well images suit their prompts (Hessel et al., 2021), 100 times the cosine of CLIP's
embeddings, and 0 where that is negative, as torchmetrics has it (the paper's own factor is 2.5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.goals import Direction
from autodiffusion_opt.objective.metrics.base import Comparison, ImagesConfig
from autodiffusion_opt.objective.metrics.mean_of_images import MeanOfImages
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.objective.features import Extractor
    from autodiffusion_opt.objective.prompt_scores import PromptScores
    from autodiffusion_opt.sampling.generate import ImageSampler


class ClipScoreConfig(ImagesConfig):
    """The keys of ``kind = "clip-score"``; its conditions must be prompts.

    Attributes:
        model: of CLIP: a folder, or a hub id.
    """

    model: str = Field(default="openai/clip-vit-base-patch16", min_length=1)

    def comparison(
        self, sampler: ImageSampler, extractor: Extractor | None, base: Path, progress: Progress
    ) -> Comparison:
        """The prompts: image i is compared with prompt i modulo their number."""
        from autodiffusion_opt.objective.prompt_scores import PromptScores
        from autodiffusion_opt.sampling.conditions import Prompts

        if not isinstance(sampler.conditions, Prompts):
            raise UserError('clip-score needs prompts: add a table [conditions] with kind = "prompts"')
        folder = absolute(self.model, base)
        progress(f"loading {self.model}", 0, 0)
        name = str(folder) if folder.is_dir() else self.model
        scores = PromptScores(name, sampler.conditions.prompts, sampler.pipeline.device)
        return Comparison(scores.identity, lambda seed, images, progress: scores)


class ClipScore(MeanOfImages):
    """The mean over images, from 0 to 100; more is better."""

    direction: ClassVar[Direction] = "maximize"
    Config: ClassVar[type[ImagesConfig]] = ClipScoreConfig

    def __init__(self, config: ClipScoreConfig, reference: PromptScores) -> None:
        super().__init__(config, reference)
        self._scores = reference

    def of_each(self, block: torch.Tensor, first: int) -> torch.Tensor:
        """(N,) of images uint8 (N, C, H, W)."""
        return self._scores.of_each(block, first)
