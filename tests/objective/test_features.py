"""Extractors: what each registered one keeps; torch-fidelity's are named as it names them; no file of weights can
run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import features as module
from autodiffusion_opt.objective.features import FEATURES, FIDELITY_LAYERS, SHORT_NAMES, load_extractor
from autodiffusion_opt.zoo import EMBEDDED
from autodiffusion_opt.zoo.digits import load_images

CPU = torch.device("cpu")


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """torch-fidelity's networks replaced by means over space, so that no weights are needed; which were asked for."""
    asked: list[tuple[Any, ...]] = []

    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            assert images.dtype == torch.uint8
            assert images.shape[1] == 3
            return (images.double().mean((2, 3)),)

    def network(name: str, layer: str, weights: Path | None) -> torch.nn.Module:
        asked.append((name, layer, weights))
        return Means()

    monkeypatch.setattr(module, "_fidelity_network", network)
    return asked


@pytest.mark.parametrize("name", sorted({*FEATURES, *SHORT_NAMES}))
def test_every_registered_extractor_gives_float32_features_image_by_image(name: str, networks: list[Any]) -> None:
    images, extractor = load_images()[:7], load_extractor(name, CPU)
    found = extractor(images)
    assert (found.dtype, found.ndim, len(found)) == (np.float32, 2, 7)
    assert np.isfinite(found).all()
    assert len({row.tobytes() for row in found}) == 7
    parts = np.concatenate([extractor(images[:3]), extractor(images[3:])])
    np.testing.assert_allclose(parts, found, rtol=1e-5, atol=1e-5)
    assert not torch.is_inference_mode_enabled()


def test_every_registered_extractor_has_an_identity_of_its_own(networks: list[Any], tmp_path: Path) -> None:
    own = [name for name in FEATURES if name != "digits-dit"]  # its features are those of digits
    identities = {name: load_extractor(name, CPU).identity for name in own}
    assert len(set(identities.values())) == len(own)
    assert all(load_extractor(name, CPU).identity == identities[full] for name, full in SHORT_NAMES.items())
    for content in (b"one", b"two"):
        (tmp_path / "weights.pth").write_bytes(content)
        identities[content] = load_extractor("vgg16", CPU, tmp_path / "weights.pth").identity
    assert len(set(identities.values())) == len(own) + 2


@pytest.mark.parametrize("name", sorted(FIDELITY_LAYERS))
def test_each_of_torch_fidelitys_names_loads_the_network_of_that_name(name: str, networks: list[Any]) -> None:
    load_extractor(name, CPU)
    assert networks == [(name, FIDELITY_LAYERS[name], None)]


def test_the_features_of_an_embedded_model_are_its_own() -> None:
    for name, embedded in EMBEDDED.items():
        images = embedded.module().load_images()[:5]
        found = load_extractor(name, CPU)(images)
        np.testing.assert_array_equal(found, embedded.module().Features(CPU)(images))


def test_pixel_features_are_means_of_areas() -> None:
    extractor = load_extractor("pixels", CPU)
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    images[1, 2, 14:, :2] = 255
    images[1, 0, 0, 0] = 255
    found = extractor(images)
    assert found.shape == (2, 192)
    expected = torch.zeros(3, 8, 8)
    expected[2, 7, 0], expected[0, 0, 0] = 1.0, 0.25
    assert torch.equal(torch.from_numpy(found), torch.stack([torch.zeros(192), expected.flatten()]))
    assert extractor(torch.zeros(1, 1, 5, 9, dtype=torch.uint8)).shape == (1, 64)


def test_digits_features_need_grey_images_of_their_size() -> None:
    with pytest.raises(UserError, match=r"grey 8×8 images; got \(C, H, W\) = \(3, 32, 32\)"):
        load_extractor("digits", CPU)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_every_listed_extractor_gives_the_listed_layer() -> None:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    for name, layer in FIDELITY_LAYERS.items():
        assert layer in FEATURE_EXTRACTORS_REGISTRY[name].get_provided_features_list()


class Harm:
    """What a pickle can do when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_a_pickle_that_runs_code_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Harm()}, tmp_path / "weights.pth", pickle_module=pickle)
    with pytest.raises(UserError, match="weights alone"):
        load_extractor("inception", CPU, tmp_path / "weights.pth")
    assert not (tmp_path / "harm").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_inception_reads_its_weights_and_takes_grey_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    read = []
    monkeypatch.setattr(Inception, "load_state_dict", lambda self, found: read.append(found))
    torch.save({"one": torch.ones(1)}, tmp_path / "weights.pth")
    torch.manual_seed(0)
    extractor = load_extractor("inception", CPU, tmp_path / "weights.pth")
    features = extractor(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert (features.shape, features.dtype) == ((2, 2048), np.float32)
    assert list(read[0]) == ["one"]
    assert "inception-v3-compat-2048" in extractor.identity


def test_missing_weights_and_misspelt_names_are_refused() -> None:
    with pytest.raises(UserError, match="must exist"):
        load_extractor("vgg16", CPU, Path("nowhere.pth"))
    with pytest.raises(UserError, match="Did you mean 'inception'"):
        load_extractor("incepton", CPU)
    with pytest.raises(UserError, match="Did you mean 'inception-v3-compat'"):
        load_extractor("inception-v3-compact", CPU)


FILES = {
    "inception": ("releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth", "weights-inception-"),
    "vgg16": ("download.pytorch.org/models/vgg16-397923af.pth", "vgg16-397923af.pth"),
    "clip": ("openaipublic.azureedge.net/clip/models/", "clip-vit-b-32-"),
    "clip-rn50": ("RN50.pt", "clip-rn50-"),
    "dinov2": ("there torch.hub keeps facebookresearch/dinov2", ""),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("error", [OSError("<urlopen error [Errno -2] Name or service not known>"), RuntimeError()])
def test_without_a_network_the_message_says_which_file_goes_where(
    name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity import utils

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(utils, "create_feature_extractor", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="its weights cannot be had") as told:
        load_extractor(name, torch.device("cpu"))
    address, file = FILES[name]
    place = f"{tmp_path}/hub/checkpoints/{file}" if file else f"copy {tmp_path}/hub from a machine"
    assert address in str(told.value)
    assert place in str(told.value)
    assert "\n" not in str(told.value)


def test_where_torch_fidelity_reads_no_file_of_weights_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(UserError, match="torch-fidelity reads no file of weights for 'dinov2-vit-l-14'; copy"):
        load_extractor("dinov2", torch.device("cpu"), tmp_path / "weights.pth")
