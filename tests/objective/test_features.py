"""Extractors: what each registered one keeps; torch-fidelity's are named as it names them; no file of weights can
run code."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from marks import slow_but
from PIL import Image

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


CLIP = "https://openaipublic.azureedge.net/clip/models"
RN50 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
B16 = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
B32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
# The address of an extractor's weights, and the name that the file is looked for by.
FILES = {
    "inception-v3-compat": (
        f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}",
        INCEPTION,
    ),
    "vgg16": ("https://download.pytorch.org/models/vgg16-397923af.pth", "vgg16-397923af.pth"),
    "clip-rn50": (f"{CLIP}/{RN50}/RN50.pt", f"clip-rn50-{RN50}.pt"),
    "clip-vit-b-16": (f"{CLIP}/{B16}/ViT-B-16.pt", f"clip-vit-b-16-{B16}.pt"),
    "clip-vit-b-32": (f"{CLIP}/{B32}/ViT-B-32.pt", f"clip-vit-b-32-{B32}.pt"),
    "clip-vit-l-14": (f"{CLIP}/{L14}/ViT-L-14.pt", f"clip-vit-l-14-{L14}.pt"),
    "dinov2": ("there torch.hub keeps facebookresearch/dinov2", ""),
}


@pytest.mark.parametrize("name", slow_but(sorted({*FIDELITY_LAYERS, *SHORT_NAMES}), "inception"))
def test_without_a_network_the_message_says_which_file_goes_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="its weights cannot be had") as told:
        load_extractor(name, CPU)
    full = SHORT_NAMES.get(name, name)
    address, file = FILES["dinov2" if full.startswith("dinov2") else full]
    place = f"put {address} at {tmp_path}/hub/checkpoints/{file}" if file else f"copy {tmp_path}/hub from a machine"
    assert place in str(told.value)
    assert address in str(told.value)
    assert "\n" not in str(told.value)


def test_where_torch_fidelity_reads_no_file_of_weights_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(UserError, match="torch-fidelity reads no file of weights for 'dinov2-vit-l-14'; copy"):
        load_extractor("dinov2", torch.device("cpu"), tmp_path / "weights.pth")


def test_weights_of_another_network_are_told(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    (tmp_path / "text.pt").write_text("no weights")
    for name, file in {"inception": "weights.pth", "clip": "weights.pth", "clip-rn50": "text.pt"}.items():
        with pytest.raises(UserError, match=f"features_weights: .*{file} does not hold the weights of '.*' "):
            load_extractor(name, CPU, tmp_path / file)


class TinyClip(torch.nn.Module):
    """What torch-fidelity reads of CLIP's archive: a vision transformer, and the width of its features."""

    def __init__(self) -> None:
        from torch_fidelity.feature_extractor_clip import CLIPVisual

        super().__init__()
        torch.manual_seed(0)
        self.visual = CLIPVisual(6, 32, 1, 64, 16).visual
        self.text_projection = torch.nn.Parameter(torch.ones(3, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.text_projection


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    """CLIP's weights are a TorchScript archive, in half precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch calls TorchScript deprecated
        torch.jit.save(torch.jit.trace(TinyClip().half(), torch.ones(3, 6).half()), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


def test_clips_weights_are_read_from_a_file(clip_file: Path) -> None:
    extractor = load_extractor("clip", CPU, clip_file)
    images = load_images()[:4]
    features = extractor(images)
    assert (features.shape, features.dtype) == (((4, 6)), np.float32)
    assert len({row.tobytes() for row in features}) == 4
    np.testing.assert_array_equal(load_extractor("clip", CPU, clip_file)(images), features)


def test_clips_weights_are_downloaded_once_and_read_without_pickles(
    clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        downloads.append((url, hash_prefix))
        Path(path).write_bytes(clip_file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    images = load_images()[:4]
    expected = load_extractor("clip", CPU, clip_file)(images)
    for _ in range(2):
        np.testing.assert_array_equal(load_extractor("clip", CPU)(images), expected)
    assert downloads == [(f"{CLIP}/{B32}/ViT-B-32.pt", B32)]
    assert load_extractor("clip", CPU).identity.endswith("-clip-vit-b-32-clip")


@pytest.mark.slow
def test_the_distance_of_inceptions_features_is_torch_fidelitys(tmp_path: Path) -> None:
    """With random weights, since the true ones are a download: both read the same file."""
    from torch_fidelity import calculate_metrics
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    from autodiffusion_opt.objective.references import load_reference
    from autodiffusion_opt.objective.statistics import FrechetDistance

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inception, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *given, **more: {})
        network = Inception("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    weights = tmp_path / "weights.pth"
    torch.save(network.state_dict(), weights)
    rng, folders = np.random.default_rng(0), {"generated": 10, "real": 12}
    for folder, count in folders.items():
        (tmp_path / folder).mkdir()
        for index in range(count):
            colours = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((32, 32)).save(tmp_path / folder / f"{index}.png")
    theirs = calculate_metrics(
        input1=str(tmp_path / "generated"),
        input2=str(tmp_path / "real"),
        fid=True,
        feature_extractor_weights_path=str(weights),
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # no workers
        verbose=False,
    )["frechet_inception_distance"]
    extractor = load_extractor("inception", CPU, weights)
    distance = FrechetDistance(load_reference(str(tmp_path / "real"), extractor).statistics)
    for path in sorted((tmp_path / "generated").iterdir()):
        with Image.open(path) as image:
            distance.add(extractor(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]))
    assert theirs > 0
    assert distance.value() == pytest.approx(theirs, rel=1e-5)
