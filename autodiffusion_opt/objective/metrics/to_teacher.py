"""The base of metrics that compare an image with the teacher's of the same noise, pixel by pixel or by a network."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from autodiffusion_opt.objective.metrics.base import TeacherConfig
from autodiffusion_opt.objective.metrics.mean_of_images import MeanOfImages

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.objective.teacher_reference import TeacherReference


class ToTeacher(MeanOfImages):
    """The mean over images of how each compares; a block of the teacher's images is in memory at once."""

    Config: ClassVar[type[TeacherConfig]] = TeacherConfig

    def __init__(self, config: TeacherConfig, reference: TeacherReference) -> None:
        super().__init__(config, reference)
        self._teacher = reference
        reference.prepare()

    @abstractmethod
    def compared(self, images: torch.Tensor, teacher: torch.Tensor) -> Any:
        """(N,) numbers of N images and the teacher's, both uint8 (N, C, H, W) on the pipeline's device."""

    def of_each(self, block: torch.Tensor, first: int) -> Any:
        """(N,) of images uint8 (N, C, H, W)."""
        return self.compared(block, self._teacher.images(first, first + len(block)).to(block.device))
