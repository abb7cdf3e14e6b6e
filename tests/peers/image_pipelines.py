"""Small pipelines that start from an image: of the parts of :mod:`peers.pipelines`, and Kandinsky's of its own.

Each builder takes a scheduler (None: the model's own) and returns the pipeline and the arguments of its call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch
from peers import pipelines
from PIL import Image

Built = tuple[Any, dict[str, Any]]


@cache
def parts(name: str) -> dict[str, Any]:
    return dict(pipelines.BUILDERS[name]().components)


def picture(size: int) -> Any:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def mask(size: int) -> Any:
    half = np.zeros((size, size), dtype=np.uint8)
    half[:, size // 2 :] = 255
    return Image.fromarray(half)


def build(kind: Any, source: str, scheduler: Any, call: dict[str, Any], **more: Any) -> Built:
    components = parts(source) | more
    components["scheduler"] = scheduler if scheduler is not None else components["scheduler"]
    pipeline = kind(**components, **({"requires_safety_checker": False} if "safety_checker" in components else {}))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, {"prompt": "a cat", "output_type": "latent", **call}


def img2img(scheduler: Any = None) -> Built:
    return build(diffusers.StableDiffusionImg2ImgPipeline, "stable_diffusion", scheduler, {"image": picture(64)})


def inpaint(scheduler: Any = None) -> Built:
    call = {"image": picture(64), "mask_image": mask(64), "height": 64, "width": 64}
    return build(diffusers.StableDiffusionInpaintPipeline, "stable_diffusion", scheduler, call)


@cache
def _controlnet() -> Any:
    torch.manual_seed(0)
    return diffusers.ControlNetModel.from_unet(
        parts("stable_diffusion")["unet"], conditioning_channels=3, conditioning_embedding_out_channels=(4, 4, 8, 8)
    )


def controlnet(scheduler: Any = None) -> Built:
    """From noise, steered by an image: there is no strength."""
    call = {"image": picture(64)}
    kind = diffusers.StableDiffusionControlNetPipeline
    return build(kind, "stable_diffusion", scheduler, call, controlnet=_controlnet())


def controlnet_img2img(scheduler: Any = None) -> Built:
    call = {"image": picture(64), "control_image": picture(64)}
    kind = diffusers.StableDiffusionControlNetImg2ImgPipeline
    return build(kind, "stable_diffusion", scheduler, call, controlnet=_controlnet())


def sdxl_img2img(scheduler: Any = None) -> Built:
    return build(diffusers.StableDiffusionXLImg2ImgPipeline, "sdxl", scheduler, {"image": picture(64)})


def sdxl_inpaint(scheduler: Any = None) -> Built:
    call = {"image": picture(64), "mask_image": mask(64), "height": 64, "width": 64}
    return build(diffusers.StableDiffusionXLInpaintPipeline, "sdxl", scheduler, call)


def sd3_img2img(scheduler: Any = None) -> Built:
    call = {"image": picture(64), "height": 64, "width": 64}
    return build(diffusers.StableDiffusion3Img2ImgPipeline, "sd3", scheduler, call)


def flux_img2img(scheduler: Any = None) -> Built:
    call = {"image": picture(16), "height": 16, "width": 16}
    return build(diffusers.FluxImg2ImgPipeline, "flux", scheduler, call)


def flux_inpaint(scheduler: Any = None) -> Built:
    call = {"image": picture(16), "mask_image": mask(16), "height": 16, "width": 16}
    return build(diffusers.FluxInpaintPipeline, "flux", scheduler, call)


def lcm_img2img(scheduler: Any = None) -> Built:
    kind = diffusers.LatentConsistencyModelImg2ImgPipeline
    return build(kind, "latent_consistency", scheduler, {"image": picture(64)})


def kandinsky_img2img(scheduler: Any = None) -> Built:
    """Kandinsky 2.2's decoder, which sees the embedding of an image and predicts its variance."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        addition_embed_type="image",
        encoder_hid_dim=8,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )
    movq = diffusers.VQModel(
        latent_channels=4,
        block_out_channels=(32, 32),  # SpatialNorm has 32 groups
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=8,
        num_vq_embeddings=16,
        norm_type="spatial",
    )
    pipeline = diffusers.KandinskyV22Img2ImgPipeline(unet, scheduler or diffusers.DDPMScheduler(), movq)
    pipeline.set_progress_bar_config(disable=True)
    call = {"image": picture(16), "height": 16, "width": 16, "output_type": "latent"}
    return pipeline, call | {"image_embeds": torch.ones(1, 8), "negative_image_embeds": torch.zeros(1, 8)}


BUILDERS: dict[str, Callable[..., Built]] = {
    function.__name__: function
    for function in (
        img2img,
        inpaint,
        controlnet,
        controlnet_img2img,
        sdxl_img2img,
        sdxl_inpaint,
        sd3_img2img,
        flux_img2img,
        flux_inpaint,
        lcm_img2img,
        kandinsky_img2img,
    )
}
FLOW = ("sd3_img2img", "flux_img2img", "flux_inpaint")
