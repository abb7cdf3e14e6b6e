"""The base of metrics that compare an image with the teacher's of the same noise, pixel by pixel or by a network."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from autodiffusion_opt.objective.metrics.base import Metric, TeacherConfig

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.objective.teacher_reference import TeacherReference


class ToTeacher(Metric):
    """The mean over images of a number of each; a block of the teacher's images is in memory at once."""

    Config: ClassVar[type[TeacherConfig]] = TeacherConfig

    def __init__(self, config: TeacherConfig, reference: TeacherReference) -> None:
        super().__init__(config, reference)
        self._teacher = reference
        self._total, self._count = 0.0, 0
        reference.prepare()

    @abstractmethod
    def of_each(self, images: torch.Tensor, teacher: torch.Tensor) -> Any:
        """(N,) numbers of N images and the teacher's, both uint8 (N, C, H, W) on the pipeline's device."""

    def add(self, block: torch.Tensor, /) -> None:
        """uint8 (N, C, H, W), the images that follow those added before."""
        teacher = self._teacher.images(self._count, self._count + len(block)).to(block.device)
        self._total += float(self.of_each(block, teacher).sum())
        self._count += len(block)

    def value(self) -> float:
        """The mean over all images."""
        return self._total / self._count
