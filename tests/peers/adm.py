"""ADM's networks and its guided DDIM, straight-line in float64, on weights with OpenAI's names.

Written from https://arxiv.org/abs/2105.05233 (section 3, appendix) and the names and shapes in the published files;
neither from diffusers nor from what is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import avg_pool2d, conv2d, group_norm, interpolate, linear, silu

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """How a network is built: width of the first level, multiples of it, residual blocks a level, and so on."""

    width: int
    multiples: tuple[int, ...]
    blocks: int
    attended: tuple[int, ...]  # levels with attention
    head: int
    size: int
    outputs: int
    classes: int | None = None
    is_classifier: bool = False
    inputs: int = 3
    is_plain: bool = False  # resolutions change by a convolution, and times are added, not scaled with

    @property
    def spans(self) -> int:
        return 4 * self.width


ADM64 = Shape(192, (1, 2, 3, 4), 3, (1, 2, 3), 64, 64, 6, 1000)
LSUN256 = Shape(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 64, 256, 6)
CLASSIFIER64 = Shape(128, (1, 2, 3, 4), 4, (1, 2, 3), 64, 64, 1000, is_classifier=True)


def down_path(shape: Shape) -> Iterator[tuple[str, str, int, int]]:
    """(name, "residual", "attention" or "down", channels in, channels out), in the order of execution."""
    number, channels = 1, shape.width
    for level, multiple in enumerate(shape.multiples):
        for _ in range(shape.blocks):
            after = multiple * shape.width
            yield f"input_blocks.{number}.0", "residual", channels, after
            channels = after
            if level in shape.attended:
                yield f"input_blocks.{number}.1", "attention", channels, channels
            yield "", "keep", channels, channels
            number += 1
        if level < len(shape.multiples) - 1:
            yield f"input_blocks.{number}.0", "strided" if shape.is_plain else "down", channels, channels
            yield "", "keep", channels, channels
            number += 1


def up_path(shape: Shape, kept: list[int]) -> Iterator[tuple[str, str, int, int]]:
    """The same of the second half; ``kept``: the channels of what the first half keeps, used up from the end."""
    number, channels, kept = 0, shape.multiples[-1] * shape.width, list(kept)
    for level in reversed(range(len(shape.multiples))):
        for index in range(shape.blocks + 1):
            after = shape.multiples[level] * shape.width
            yield f"output_blocks.{number}.0", "joined", channels + kept.pop(), after
            channels, slot = after, 1
            if level in shape.attended:
                yield f"output_blocks.{number}.1", "attention", channels, channels
                slot = 2
            if level and index == shape.blocks:
                yield f"output_blocks.{number}.{slot}", "stretched" if shape.is_plain else "up", channels, channels
            number += 1


def middle(shape: Shape) -> list[tuple[str, str, int, int]]:
    channels = shape.multiples[-1] * shape.width
    kinds = ("residual", "attention", "residual")
    return [(f"middle_block.{index}", kind, channels, channels) for index, kind in enumerate(kinds)]


def path(shape: Shape) -> list[tuple[str, str, int, int]]:
    down = list(down_path(shape))
    if shape.is_classifier:
        return [*down, *middle(shape)]
    kept = [shape.width, *(after for _, kind, _, after in down if kind == "keep")]
    return [*down, *middle(shape), *up_path(shape, kept)]


def shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight in a published file."""
    wide, result = shape.spans, {}

    def add(name: str, *weight: int, bias: bool = True) -> None:
        result[f"{name}.weight"] = weight
        if bias:
            result[f"{name}.bias"] = weight[:1]

    add("time_embed.0", wide, shape.width)
    add("time_embed.2", wide, wide)
    if shape.classes is not None:
        add("label_emb", shape.classes, wide, bias=False)
    add("input_blocks.0.0", shape.width, shape.inputs, 3, 3)
    for name, kind, before, after in path(shape):
        if kind == "attention":
            add(f"{name}.norm", after)
            add(f"{name}.qkv", 3 * after, after, 1)
            add(f"{name}.proj_out", after, after, 1)
        elif kind in ("strided", "stretched"):
            add(f"{name}.{'op' if kind == 'strided' else 'conv'}", after, before, 3, 3)
        elif kind != "keep":
            add(f"{name}.in_layers.0", before)
            add(f"{name}.in_layers.2", after, before, 3, 3)
            add(f"{name}.emb_layers.1", after if shape.is_plain else 2 * after, wide)
            add(f"{name}.out_layers.0", after)
            add(f"{name}.out_layers.3", after, after, 3, 3)
            if before != after:
                add(f"{name}.skip_connection", after, before, 1, 1)
    last = path(shape)[-1][3]
    add("out.0", last)
    if shape.is_classifier:
        side = shape.size // 2 ** (len(shape.multiples) - 1)
        result["out.2.positional_embedding"] = (last, side**2 + 1)
        add("out.2.qkv_proj", 3 * last, last, 1)
        add("out.2.c_proj", shape.outputs, last, 1)
    else:
        add("out.2", shape.outputs, last, 3, 3)
    return result


def random_state(shape: Shape, seed: int, dtype: torch.dtype = torch.float32) -> State:
    """Random weights of such a size that every part of the network matters."""
    return random_weights(shapes(shape), seed, dtype)


def random_weights(sizes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, size in sizes.items():
        inputs = math.prod(size[1:]) if len(size) > 1 else 4
        weight = torch.randn(size, generator=generator, dtype=torch.float64) / inputs**0.5
        is_norm = name.endswith("weight") and len(size) == 1
        state[name] = (weight * 0.3 + 1 if is_norm else weight).to(dtype)
    return state


class _Network:
    """The parts that UNet and classifier share."""

    def __init__(self, state: State, shape: Shape, order: str, removed: Sequence[str] = ()) -> None:
        self.state = {name: weight.double() for name, weight in state.items()}
        self.shape, self.order, self.removed = shape, order, set(removed)

    def of(self, name: str, function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        return function(*args, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **kwargs)

    def norm(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        return self.of(name, lambda weight, bias: group_norm(hidden, 32, weight, bias, 1e-5))

    def embedding(self, times: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        half = self.shape.width // 2
        angles = times.double()[:, None] * torch.exp(-math.log(10000) * torch.arange(half).double() / half)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        result = self.of("time_embed.2", linear, silu(self.of("time_embed.0", linear, waves)))
        return result if self.shape.classes is None else result + self.state["label_emb.weight"][labels]

    def residual(self, name: str, kind: str, hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        resample = {
            "down": lambda image: avg_pool2d(image, 2),
            "up": lambda image: interpolate(image, scale_factor=2, mode="nearest"),
        }.get(kind, lambda image: image)
        skip = resample(hidden)
        if f"{name}.skip_connection.weight" in self.state:
            skip = self.of(f"{name}.skip_connection", conv2d, skip)
        if name in self.removed:
            return skip
        inner = resample(silu(self.norm(f"{name}.in_layers.0", hidden)))
        inner = self.of(f"{name}.in_layers.2", conv2d, inner, padding=1)
        moved = self.of(f"{name}.emb_layers.1", linear, silu(embedding))[:, :, None, None]
        if self.shape.is_plain:
            inner = self.norm(f"{name}.out_layers.0", inner + moved)
        else:
            scale, shift = moved.chunk(2, dim=1)
            inner = self.norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        return skip + self.of(f"{name}.out_layers.3", conv2d, silu(inner), padding=1)

    def attention(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        if name in self.removed:
            return hidden
        normed = self.norm(f"{name}.norm", hidden).flatten(2)
        mixed = attend(self.pointwise(f"{name}.qkv", normed), self.shape.head, self.order)
        return hidden + self.pointwise(f"{name}.proj_out", mixed).view_as(hidden)

    def pointwise(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """(N, C, L) -> (N, C', L)"""
        weight, bias = self.state[f"{name}.weight"][..., 0], self.state[f"{name}.bias"]
        return torch.einsum("oc,ncl->nol", weight, hidden) + bias[:, None]

    def run(self, hidden: torch.Tensor, times: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        embedding = self.embedding(times, labels)
        hidden = self.of("input_blocks.0.0", conv2d, hidden, padding=1)
        kept = [hidden]
        for name, kind, _, _ in path(self.shape):
            if kind == "keep":
                kept.append(hidden)
            elif kind == "attention":
                hidden = self.attention(name, hidden)
            elif kind == "strided":
                hidden = self.of(f"{name}.op", conv2d, hidden, stride=2, padding=1)
            elif kind == "stretched":
                hidden = self.of(f"{name}.conv", conv2d, interpolate(hidden, scale_factor=2), padding=1)
            else:
                hidden = torch.cat([hidden, kept.pop()], dim=1) if kind == "joined" else hidden
                hidden = self.residual(name, kind, hidden, embedding)
        return silu(self.norm("out.0", hidden))


def attend(qkv: torch.Tensor, head: int, order: str) -> torch.Tensor:
    """(N, 3 C, L) -> (N, C, L), one head after the other."""
    count, channels, results = len(qkv), qkv.shape[1] // 3, []
    for first in range(0, channels, head):
        starts = (first, channels + first, 2 * channels + first)  # new: queries, keys, values of all heads in turn
        if order == "legacy":  # of each head in turn
            starts = (3 * first, 3 * first + head, 3 * first + 2 * head)
        query, key, value = (qkv[:, start : start + head] for start in starts)
        weights = (torch.einsum("nct,ncs->nts", query, key) / head**0.5).softmax(dim=2)
        results.append(torch.einsum("nts,ncs->nct", weights, value))
    return torch.cat(results, dim=1).view(count, channels, -1)


def unet(
    state: State,
    shape: Shape,
    order: str,
    images: torch.Tensor,
    times: torch.Tensor,
    labels: torch.Tensor | None = None,
    removed: Sequence[str] = (),
) -> torch.Tensor:
    """ε and the variance's channels. ``removed``: names of blocks of which only the skip path is left."""
    network = _Network(state, shape, order, removed)
    return network.of("out.2", conv2d, network.run(images.double(), times, labels), padding=1)


def classifier(
    state: State, shape: Shape, images: torch.Tensor, times: torch.Tensor, order: str = "legacy"
) -> torch.Tensor:
    """Logits (N, classes)."""
    network = _Network(state, shape, order)
    hidden = network.run(images.double(), times).flatten(2)
    hidden = torch.cat([hidden.mean(dim=2, keepdim=True), hidden], dim=2) + network.state["out.2.positional_embedding"]
    mixed = attend(network.pointwise("out.2.qkv_proj", hidden), shape.head, "new")
    return network.pointwise("out.2.c_proj", mixed)[:, :, 0]


def guided_ddim(
    predict: Callable[[torch.Tensor, float, int], torch.Tensor],
    log_probability: Callable[[torch.Tensor, float], torch.Tensor] | None,
    noise: torch.Tensor,
    times: Sequence[float],
    alpha_bar: Callable[[float], float],
    scale: float,
) -> torch.Tensor:
    """Algorithm 2 with x̂_0 clipped before the guidance; it ends at ᾱ = 1.

    Args:
        predict: ε of (x_t, t, index of the step).
        log_probability: Σ log p(y | x_t, t) of (x_t, t).
        noise: x_T.
        times: from noise to image.
        alpha_bar: at a time.
        scale: of the gradient.
    """
    sample = noise.double()
    levels = [alpha_bar(time) for time in times] + [1.0]
    for index, time in enumerate(times):
        now, then = levels[index], levels[index + 1]
        epsilon = predict(sample, time, index)
        image = ((sample - math.sqrt(1 - now) * epsilon) / math.sqrt(now)).clamp(-1, 1)
        epsilon = (sample - math.sqrt(now) * image) / math.sqrt(1 - now)
        if log_probability is not None and scale:
            leaf = sample.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_probability(leaf, time), leaf)
            epsilon = epsilon - math.sqrt(1 - now) * scale * gradient
        image = (sample - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
        sample = math.sqrt(then) * image + math.sqrt(1 - then) * epsilon
    return sample


def cosine_alpha_bar(steps: int = 1000) -> list[float]:
    """https://arxiv.org/abs/2102.09672, equation (17), with β at most 0.999; float64."""

    def level(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    total, levels = 1.0, []
    for step in range(steps):
        total *= 1 - min(1 - level((step + 1) / steps) / level(step / steps), 0.999)
        levels.append(total)
    return levels


def between(levels: Sequence[float], time: float) -> float:
    """ᾱ at a time between two integers: log σ, σ² = (1-ᾱ)/ᾱ, is linear there."""
    low = min(int(time), len(levels) - 2)
    share = time - low
    logs = [0.5 * math.log((1 - level) / level) for level in levels[low : low + 2]]
    sigma = math.exp((1 - share) * logs[0] + share * logs[1])
    return 1 / (1 + sigma**2)


def small(order: str, classes: int | None = 5, classifier: bool = True) -> tuple[Any, Shape, Shape]:
    """A preset of a small model (16×16 images, two resolutions), and the shapes of its networks."""
    from autodiffusion_opt.sampling.adm.presets import PRESETS, Preset

    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1, "attention_head_dim": 16, "sample_size": 16}
    unet = {
        **PRESETS["adm64"].unet,
        **blocks,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "num_class_embeds": classes,
    }
    guide = {**blocks, "num_classes": 5, "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")}
    preset = Preset(unet, order, PRESETS["adm64"].scheduler, guide if classifier else None, "small.pt")
    shape = Shape(32, (1, 2), 1, (1,), 16, 16, 6, classes)
    return preset, shape, Shape(32, (1, 2), 1, (1,), 16, 16, 5, is_classifier=True)


def small_pipeline(order: str = "new", dtype: torch.dtype = torch.float32) -> tuple[Any, State, State]:
    """A small guided pipeline with random weights, and those under OpenAI's names."""
    from autodiffusion_opt.sampling.adm.convert import build

    preset, shape, guide = small(order)
    states = random_state(shape, 1), random_state(guide, 2)
    pipeline = build(preset, *states).to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, *states


def precise_waves(self: Any, times: torch.Tensor) -> torch.Tensor:
    """In place of diffusers' ``Timesteps.forward``, which computes in float32 whatever the network's type."""
    half = self.num_channels // 2
    angles = times.double()[:, None] * 10000 ** (-torch.arange(half, device=times.device).double() / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
