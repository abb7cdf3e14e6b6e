"""OpenAI's weights in diffusers' modules: the same numbers as a straight-line network, nothing missing or left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from peers import adm

from autodiffusion_opt import UserError
from autodiffusion_opt.sampling.adm import NoisyClassifier
from autodiffusion_opt.sampling.adm.convert import build, convert
from autodiffusion_opt.sampling.adm.presets import PRESETS
from autodiffusion_opt.sampling.adm.weights import sources
from autodiffusion_opt.sampling.renaming import renamed

ORDERS = ["new", "legacy"]
TIMES, LABELS = torch.tensor([3.0, 700.25], dtype=torch.float64), torch.tensor([4, 1])


def images() -> torch.Tensor:
    return torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _precise_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers computes the sines of a time in float32 whatever the network's type."""
    monkeypatch.setattr("diffusers.models.embeddings.Timesteps.forward", adm.precise_waves)


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_a_converted_unet_computes_what_the_original_does(order: str) -> None:
    pipeline, state, _ = adm.small_pipeline(order, torch.float64)
    ours = pipeline.unet(images(), TIMES, class_labels=LABELS).sample
    theirs = adm.unet(state, adm.small(order)[1], order, images(), TIMES, LABELS)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-10


@torch.no_grad()
def test_a_converted_classifier_computes_what_the_original_does() -> None:
    pipeline, _, state = adm.small_pipeline(dtype=torch.float64)
    theirs = adm.classifier(state, adm.small("new")[2], images(), TIMES)
    assert (pipeline.classifier(images(), TIMES) - theirs).abs().max() < 1e-10
    assert (theirs[0] - theirs[1]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_the_wrong_order_of_queries_keys_and_values_is_far_off(order: str) -> None:
    _, shape, guide = adm.small(order)
    wrong = ORDERS[1 - ORDERS.index(order)]
    pipeline, state, guide_state = adm.small_pipeline(order, torch.float64)
    theirs = adm.unet(state, shape, wrong, images(), TIMES, LABELS)
    assert (pipeline.unet(images(), TIMES, class_labels=LABELS).sample - theirs).abs().max() > 1e-2
    if order == "legacy":
        theirs = adm.classifier(guide_state, guide, images(), TIMES, order=wrong)
        assert (pipeline.classifier(images(), TIMES) - theirs).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "config", "shape", "order", "originals", "targets", "parameters"),
    [
        (UNet2DModel, PRESETS["adm64"].unet, adm.ADM64, "new", 541, 629, 295_904_454),
        (UNet2DModel, PRESETS["lsun256"].unet, adm.LSUN256, "legacy", 566, 630, 552_814_086),
        (NoisyClassifier, PRESETS["adm64"].classifier, adm.CLASSIFIER64, "legacy", None, 363, 65_438_568),
    ],
    ids=["adm64", "lsun256", "classifier"],
)
def test_every_weight_of_the_published_models_has_its_place(
    kind: Any, config: Any, shape: Any, order: Any, originals: int | None, targets: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = kind(**config)
        state = {name: torch.empty(size) for name, size in adm.shapes(shape).items()}
    assert originals is None or len(state) == originals
    filled = renamed(state, model, sources(model, order))
    assert {key: weight.shape for key, weight in filled.items()} == {
        key: weight.shape for key, weight in model.state_dict().items()
    }
    assert len(filled) == targets
    assert sum(weight.numel() for weight in filled.values()) == parameters == sum(w.numel() for w in state.values())
    missing = next(iter(state))
    with pytest.raises(UserError, match=rf"missing: {missing}.*not known: extra"):
        renamed(
            {**{name: weight for name, weight in state.items() if name != missing}, "extra": state[missing]},
            model,
            sources(model, order),
        )
    with pytest.raises(UserError, match="of another shape"):
        renamed({**state, "out.0.weight": state["out.0.weight"][:-1]}, model, sources(model, order))


def test_views_of_half_precision_training_become_tensors_of_their_own() -> None:
    preset, shape, guide = adm.small("new")
    flat = torch.nn.Parameter(torch.cat([weight.flatten() for weight in adm.random_state(shape, 1).values()]).half())
    parts, start = {}, 0
    for name, size in adm.shapes(shape).items():
        count = torch.Size(size).numel()
        parts[name] = flat[start : start + count].view(size)
        start += count
    pipeline = build(preset, parts, adm.random_state(guide, 2))
    weights = list(pipeline.unet.state_dict().values())
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == len(weights)
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert all(weight.is_leaf for weight in pipeline.unet.parameters())


def _file(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def _head(width: int, channels: int, blocks: int, has_classes: bool = True, is_classifier: bool = False) -> Any:
    """Of a file's weights, what tells the published models apart."""
    state = {f"input_blocks.{number}.0.in_layers.0.weight": torch.zeros(1) for number in range(1, blocks)}
    state["input_blocks.0.0.weight"] = torch.zeros(width, channels, 3, 3)
    if has_classes:
        state["label_emb.weight"] = torch.zeros(1)
    if is_classifier:
        state["out.2.positional_embedding"] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adm64", _head(256, 3, 15), r"must be adm64's \(64x64_diffusion.pt\); it is ImageNet 128. Presets are"),
        ("adm64", _head(256, 3, 18), "it is ImageNet 256, class-conditional"),
        ("adm64", _head(128, 3, 21), "it is ImageNet 512"),
        ("adm64", _head(192, 6, 18), "it is the upsampler from 64 to 256"),
        ("adm64", _head(256, 3, 18, has_classes=False), "it is lsun256. Use: convert lsun256"),
        ("lsun256", _head(192, 3, 16), r"it is adm64 \(ImageNet 64\). Use: convert adm64"),
        ("adm64", _head(64, 3, 9), "of no published layout: 64 channels wide, 3 in, with classes, 9 input blocks"),
        ("adm64", _head(128, 3, 20, False, True), "is a classifier: give it as --classifier"),
        ("adm64", _head(192, 3, 16), "the weights do not fit UNet2DModel: missing"),
        ("adm64", {"weight": torch.zeros(1)}, "must be a checkpoint of guided-diffusion"),
        ("adm64", {}, "must hold names and weights"),
        ("adm64", [torch.zeros(1)], "must hold names and weights, as a state_dict has them; got list"),
        ("adm64", {"path": Path("x")}, "must be a file of weights alone"),
    ],
)
def test_other_files_are_refused_by_name(name: str, content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        convert(name, _file(tmp_path / "file.pt", content), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_classifiers_are_refused_by_name(tmp_path: Path) -> None:
    file = _file(tmp_path / "unet.pt", _head(192, 3, 16))
    guide = _file(tmp_path / "guide.pt", _head(128, 3, 15, False, True))
    with pytest.raises(UserError, match=r"--classifier: .*64x64_classifier.pt\); it is the classifier of ImageNet 128"):
        convert("adm64", file, guide, tmp_path / "out")
    with pytest.raises(UserError, match=r"--classifier: .* has no attention pool"):
        convert("adm64", file, file, tmp_path / "out")
    with pytest.raises(UserError, match="lsun256 is not guided by a classifier"):
        convert("lsun256", file, guide, tmp_path / "out")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("text.pt", "missing.pt"):
        with pytest.raises(UserError, match=name):
            convert("adm64", tmp_path / name, None, tmp_path / "out")
