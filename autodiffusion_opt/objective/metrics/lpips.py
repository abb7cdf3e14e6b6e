"""``kind = "lpips"``: the learned perceptual distance of an image to the teacher's of the same noise (Zhang et al.,
2018), as torchmetrics computes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.objective.metrics.base import Comparison, TeacherConfig
from autodiffusion_opt.objective.metrics.to_teacher import ToTeacher
from autodiffusion_opt.objective.pickles import no_pickles
from autodiffusion_opt.progress import Progress

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.objective.features import Extractor
    from autodiffusion_opt.objective.teacher_reference import TeacherReference
    from autodiffusion_opt.sampling.generate import ImageSampler


class LpipsConfig(TeacherConfig):
    """The keys of ``kind = "lpips"``.

    Attributes:
        network: whose layers are compared; its weights are downloaded at first use.
    """

    network: Literal["alex", "vgg", "squeeze"] = "alex"

    def comparison(
        self, sampler: ImageSampler, extractor: Extractor | None, base: Path, progress: Progress
    ) -> Comparison:
        """The teacher's images, and the network, loaded once."""
        teacher = super().comparison(sampler, extractor, base, progress)
        network, version = load_network(self.network, sampler.pipeline.device)
        return Comparison(
            f"{teacher.identity}-torchmetrics-{version}",
            lambda *given: LpipsReference(teacher.reference(*given), network),
        )


@dataclass(frozen=True)
class LpipsReference:
    """The teacher's images, and torchmetrics' distance of two batches from 0 to 1, the mean over images."""

    teacher: TeacherReference
    distance: Any


def load_network(name: str, device: Any) -> tuple[Any, str]:
    """Torchmetrics' distance with a network, and torchmetrics' version. Raises UserError where it cannot be had."""
    try:
        import torchmetrics
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError:
        raise UserError(
            "lpips needs torchmetrics, which is not installed: pip install 'autodiffusion-opt[metrics]'"
        ) from None
    try:
        with no_pickles():
            network = LearnedPerceptualImagePatchSimilarity(net_type=name, reduction="mean", normalize=True)
    except (ImportError, OSError) as error:  # without torchvision, or without a network to download with
        raise UserError(f"lpips: the network {name!r} cannot be had: {reason_of(error)}") from None
    return network.to(device).eval(), str(torchmetrics.__version__)


class Lpips(ToTeacher):
    """The mean over images; less is nearer."""

    Config: ClassVar[type[TeacherConfig]] = LpipsConfig
    is_mean: ClassVar[bool] = False  # torchmetrics gives a block's mean

    def __init__(self, config: LpipsConfig, reference: LpipsReference) -> None:
        super().__init__(config, reference.teacher)
        self._distance = reference.distance

    def compared(self, images: torch.Tensor, teacher: torch.Tensor) -> Any:
        """(N,): the block's mean for each. Raises UserError for images that are too small for the network."""
        import torch

        from autodiffusion_opt.objective.features import colour
        from autodiffusion_opt.sampling.generate import enough_memory

        with torch.no_grad(), enough_memory(f"the lpips of {len(images)} images", "batch_size"):
            try:
                mean = self._distance(colour(images).float() / 255, colour(teacher).float() / 255)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                size = f"{images.shape[-2]} x {images.shape[-1]}"
                raise UserError(f"lpips cannot compare images of {size}: {reason_of(error)}") from None
        return mean.double().expand(len(images))
