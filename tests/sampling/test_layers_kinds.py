"""Every kind of layer in the registry: its bypass is what remains when the residual branch gives zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.resnet import ResnetBlockCondNorm2D
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3SingleTransformerBlock
from diffusers.models.unets.unet_2d_blocks import KAttentionBlock
from peers.denoisers import GIVEN, NETWORKS

from autodiffusion_opt.sampling.layers.kinds import _KINDS, find_blocks, kind_of

WARNS = pytest.mark.filterwarnings("ignore::FutureWarning")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# Blocks that no network of the peers has: how one is made, the weights at the ends of its branches, its arguments.
ALONE: dict[type, tuple[Callable[[], Any], tuple[str, ...], Callable[[], dict[str, Any]]]] = {
    ResnetBlockCondNorm2D: (
        lambda: ResnetBlockCondNorm2D(in_channels=8, out_channels=12, temb_channels=16, groups=4),
        ("conv2",),
        lambda: {"input_tensor": randn(2, 8, 4, 4), "temb": randn(2, 16)},
    ),
    KAttentionBlock: (
        lambda: KAttentionBlock(16, 2, 8, temb_channels=16, cross_attention_dim=12, add_self_attention=True),
        ("attn1.to_out.0", "attn2.to_out.0"),
        lambda: {
            "hidden_states": randn(2, 16, 32, 32),
            "encoder_hidden_states": randn(2, 3, 12),
            "emb": randn(2, 16),
        },
    ),
    SD3SingleTransformerBlock: (
        lambda: SD3SingleTransformerBlock(dim=16, num_attention_heads=2, attention_head_dim=8),
        ("attn.to_out.0", "ff.net.2"),
        lambda: {"hidden_states": randn(2, 5, 16), "temb": randn(2, 16)},
    ),
    DualTransformer2DModel: (
        lambda: DualTransformer2DModel(2, 8, in_channels=16, cross_attention_dim=12, norm_num_groups=4),
        ("transformers.0.proj_out", "transformers.1.proj_out"),
        lambda: {
            "hidden_states": randn(2, 16, 4, 4),
            "encoder_hidden_states": randn(2, 77 + 257, 12),
            "return_dict": False,
        },
    ),
}


@WARNS
@pytest.mark.parametrize("block_class", ALONE, ids=lambda cls: cls.__name__)
@torch.no_grad()
def test_a_block_alone_is_bypassed_as_if_its_branches_gave_zero(block_class: type) -> None:
    make, ends, arguments = ALONE[block_class]
    block = make().eval()
    kind = kind_of(block)
    assert kind is not None
    bypassed = kind.bypass(block, **arguments())
    whole = block(**arguments())
    for end in ends:
        for weight in block.get_submodule(end).parameters():
            torch.nn.init.zeros_(weight)
    expected = block(**arguments())
    parts = [output if isinstance(output, tuple) else (output,) for output in (bypassed, expected, whole)]
    for got, wanted, with_branches in zip(*parts, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(got, with_branches)


@WARNS
def test_every_kind_in_the_registry_is_proved_in_a_network_or_alone() -> None:
    """A kind that is added needs a network in peers.denoisers, or a block here."""
    proved = {f"diffusers.{cls.__name__}" for cls in ALONE}
    for make, _ in (NETWORKS | GIVEN).values():
        for block in find_blocks(make()).values():
            names = (f"diffusers.{cls.__name__}" for cls in type(block).__mro__)
            proved.add(next(name for name in names if name in _KINDS))
    assert {name for name in _KINDS if name.startswith("diffusers.")} == proved


@WARNS
def test_the_kind_of_a_block_is_that_of_its_own_class() -> None:
    """A class wired to another kind's function: the text stream of a joint block must come out first."""
    block = JointTransformerBlock(dim=16, num_attention_heads=2, attention_head_dim=8)
    kind = kind_of(block)
    assert kind is not None
    image, text = randn(1, 5, 16), randn(1, 3, 16)
    assert [part.shape for part in kind.bypass(block, image, text)] == [text.shape, image.shape]
