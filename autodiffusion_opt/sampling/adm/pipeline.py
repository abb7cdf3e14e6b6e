"""ADM's sampling, with or without a classifier's guidance, as a diffusers pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.adm.classifier import NoisyClassifier
from autodiffusion_opt.sampling.schedule import alpha_bar_at
from autodiffusion_opt.sampling.schedule.solver_steps import without_variance

Generators = torch.Generator | list[torch.Generator] | None


class ADMPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """Images of a pixel-space model, guided by a classifier (ADM-G, https://arxiv.org/abs/2105.05233, algorithm 2).

    Args:
        unet: predicts ε, and in further channels its variance, which is not used.
        scheduler: for ε, with ``clip_sample=False``: here x̂_0 is clipped before the guidance, and not after it.
        classifier: what guides; None: nothing does.
    """

    model_cpu_offload_seq = "unet"
    _exclude_from_cpu_offload: ClassVar = ["classifier"]
    _optional_components: ClassVar = ["classifier"]

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, classifier: NoisyClassifier | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, classifier=classifier)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Sample images.

        Args:
            class_labels: the class of each image, or one for all; needed by a class-conditional UNet and a classifier.
            batch_size: how many images, where no list of classes says it.
            num_inference_steps: how many times the UNet is called.
            guidance_scale: of the classifier's gradient; 0: no guidance. Without a classifier it has no effect.
            eta: DDIM's η, for schedulers that take it.
            generator: of the noise; a list has one for each image.
            output_type: ``pil``, ``np`` (N, H, W, C) or ``pt`` (N, C, H, W), the last two in 0..1.
            return_dict: False: a tuple with the images.

        Raises:
            UserError: for labels that are missing or wrong, a generator list of another length, or a scheduler that
                clips or does not take ε.
        """
        self._check_scheduler()
        labels = self._labels(class_labels, batch_size)
        count = batch_size if labels is None else len(labels)
        if isinstance(generator, list) and len(generator) != count:
            raise UserError(f"generator must be one, or one for each of {count} images; got {len(generator)}")
        size, channels, device = self.unet.config.sample_size, self.unet.config.in_channels, self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        sample = randn_tensor((count, channels, size, size), generator, device, self.unet.dtype)
        sample = sample * self.scheduler.init_noise_sigma
        takes = inspect.signature(self.scheduler.step).parameters
        options = {key: value for key, value in {"eta": eta, "generator": generator}.items() if key in takes}
        for timestep in self.progress_bar(self.scheduler.timesteps):
            noisy = self.scheduler.scale_model_input(sample, timestep)
            classes = None if self.unet.class_embedding is None else labels
            noise = without_variance(self.unet(noisy, timestep, class_labels=classes).sample, noisy)
            noise = self._guided(noise, noisy, timestep, labels, guidance_scale)
            sample = self.scheduler.step(noise, timestep, sample, **options).prev_sample
        images = (sample / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).float().cpu().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _guided(
        self,
        noise: torch.Tensor,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        labels: torch.Tensor | None,
        guidance_scale: float,
    ) -> torch.Tensor:
        """ε of the clipped x̂_0, less √(1-ᾱ_t) · scale · ∇ₓ log p(y | x_t, t): algorithm 2, clipped before."""
        precise = torch.promote_types(noisy.dtype, torch.float32)
        alpha_bar = alpha_bar_at(self.scheduler, timestep).to(noisy.device, precise)
        signal, spread, sample = alpha_bar**0.5, (1 - alpha_bar) ** 0.5, noisy.to(precise)
        image = ((sample - spread * noise) / signal).clamp(-1, 1)
        guided = (sample - signal * image) / spread
        if self.classifier is not None and guidance_scale != 0:
            gradient = self.classifier.log_probability_gradient(noisy, timestep, labels)
            guided = guided - spread * guidance_scale * gradient
        return guided.to(noisy.dtype)

    def _check_scheduler(self) -> None:
        config = self.scheduler.config
        for key, wanted in (("prediction_type", "epsilon"), ("clip_sample", False), ("thresholding", False)):
            if config.get(key, wanted) != wanted:
                raise UserError(
                    f"ADMPipeline needs a scheduler with {key} = {wanted!r}: x̂_0 is clipped before the guidance; "
                    f"got {config[key]!r}. Set it in scheduler_settings"
                )

    def _labels(self, class_labels: int | Sequence[int] | None, batch_size: int) -> torch.Tensor | None:
        """(N,) on the device; None where neither UNet nor classifier takes any. Raises UserError."""
        limits = [self.unet.config.num_class_embeds, self.classifier and self.classifier.config.num_classes]
        allowed = min((limit for limit in limits if limit), default=None)
        if allowed is None:
            if class_labels is not None:
                raise UserError("this model has no classes: leave class_labels out")
            return None
        if class_labels is None:
            raise UserError(f"class_labels must be given: integers from 0 to {allowed - 1}")
        labels = [class_labels] * batch_size if isinstance(class_labels, int) else list(class_labels)
        wrong = [label for label in labels if not 0 <= int(label) < allowed]
        if wrong or not labels:
            raise UserError(f"class_labels must be integers from 0 to {allowed - 1}; got {wrong[:5]}")
        return torch.tensor([int(label) for label in labels], device=self._execution_device)
