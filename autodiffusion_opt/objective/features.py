"""Feature extractors: uint8 images (N, C, H, W) in, float32 features (N, D) out.

The embedded models bring their own, ``pixels`` needs no training; the others are torch-fidelity's, imported only when
one of them is asked for. A registered extractor is a function ``(device, weights) -> Extractor``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from autodiffusion_opt.config import Registry
from autodiffusion_opt.errors import UserError, unknown
from autodiffusion_opt.zoo import EMBEDDED

# torch-fidelity's extractors, and the layer of each that metrics use.
FIDELITY_LAYERS = {
    "inception-v3-compat": "2048",
    "vgg16": "fc2_relu",
    "clip-rn50": "clip",
    "clip-vit-b-16": "clip",
    "clip-vit-b-32": "clip",
    "clip-vit-l-14": "clip",
    "dinov2-vit-s-14": "dinov2",
    "dinov2-vit-b-14": "dinov2",
    "dinov2-vit-l-14": "dinov2",
    "dinov2-vit-g-14": "dinov2",
}
# Other names for the same thing.
SHORT_NAMES = {"inception": "inception-v3-compat", "dinov2": "dinov2-vit-l-14", "clip": "clip-vit-b-32"}
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class Extractor(Protocol):
    """A feature extractor; ``identity`` changes when its features do."""

    @property
    def identity(self) -> str:
        """Text."""
        ...

    def __call__(self, images: torch.Tensor) -> NDArray[np.float32]:
        """uint8 (N, C, H, W) -> float32 (N, D)."""
        ...


# Makes an extractor: the device it runs on, and a file of weights or None.
Loader = Callable[[torch.device, Path | None], Extractor]


def load_extractor(name: str, device: torch.device, weights: Path | None = None) -> Extractor:
    """The extractor of a name.

    Args:
        name: a name in :data:`FEATURES`, or a short name.
        device: where it runs.
        weights: a file of weights, instead of the download at first use (torch-fidelity's only).

    Raises:
        UserError: for an unknown name, or weights that cannot be had.
    """
    full = SHORT_NAMES.get(name, name)
    if full not in FEATURES:
        raise unknown("features", name, [*FEATURES, *SHORT_NAMES])
    return FEATURES[full](device, weights)


class PixelFeatures:
    """Images averaged to 8×8 and flattened: 64 numbers a channel, from 0 to 1.

    Crude and without training: for toy data and for trying things out, no measure of how images look.
    """

    identity = "pixels-8"

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Any size; (N, C, H, W) -> (N, 64 C)."""
        small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 8)
        features: NDArray[np.float32] = small.flatten(1).cpu().numpy()
        return features


class FidelityFeatures:
    """One of torch-fidelity's extractors at the layer that its metrics use; grey images become three channels."""

    def __init__(self, name: str, device: torch.device, weights: Path | None = None) -> None:
        self._layer = FIDELITY_LAYERS[name]
        self._device = device
        self._network = _fidelity_network(name, self._layer, weights).to(device)
        import torch_fidelity

        self.identity = f"torch-fidelity-{torch_fidelity.__version__}-{name}-{self._layer}"
        if weights is not None:
            self.identity += "-" + hashlib.sha256(weights.read_bytes()).hexdigest()[:16]

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Each extractor resizes for itself."""
        features: NDArray[np.float32] = self._network(colour(images).to(self._device))[0].float().cpu().numpy()
        return features


def colour(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, 3, H, W): grey images become three channels."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """torch-fidelity reads weights with ``weights_only=False``; torch's own switch forbids that."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before


def _fidelity_network(name: str, layer: str, weights: Path | None) -> Any:
    from torch_fidelity.utils import create_feature_extractor

    if weights is not None and not weights.is_file():
        raise UserError(f"features_weights: the file {weights} must exist")
    more = {} if weights is None else {"feature_extractor_weights_path": str(weights)}
    try:
        with _no_pickles():
            return create_feature_extractor(name, [layer], cuda=False, verbose=False, **more)
    except pickle.UnpicklingError:
        raise UserError(
            f"features_weights: {weights} must be a file of weights alone, as torch.save writes a state dict; it holds "
            "other objects, which are not read since they can run code"
        ) from None
    except NotImplementedError:
        raise UserError(
            f"features_weights: torch-fidelity reads no file of weights for {name!r}; {_where_weights_go(name)}"
        ) from None
    except (OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"features {name!r}: its weights cannot be had ({reason}). They are downloaded at first use; without a "
            f"network, {_where_weights_go(name)}"
        ) from None


def _where_weights_go(name: str) -> str:
    """What to do where there is no network: which file, from where, to which place."""
    hub = Path(torch.hub.get_dir())
    if name.startswith("dinov2"):
        return (
            f"copy {hub} from a machine where these features were used once: there torch.hub keeps "
            "facebookresearch/dinov2 and its weights"
        )
    url, file = _weights_file(name)
    return f"put {url} at {hub / 'checkpoints' / file}, or give its path as features_weights"


def _weights_file(name: str) -> tuple[str, str]:
    """The address that an extractor's weights are downloaded from, and the file's name in torch.hub's folder."""
    if name.startswith("clip"):
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

        return MODEL_URLS[name], f"{name}-{MODEL_METADATA[name]['hash']}.pt"
    if name == "vgg16":
        from torchvision.models import VGG16_Weights  # type: ignore[import-untyped]

        url = str(VGG16_Weights.IMAGENET1K_V1.url)
    else:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        url = str(URL_INCEPTION_V3)
    return url, url.rsplit("/", 1)[-1]


def _embedded_loader(name: str) -> Loader:
    def load(device: torch.device, weights: Path | None) -> Extractor:
        extractor: Extractor = EMBEDDED[name].module().Features(device)
        return extractor

    return load


def _fidelity_loader(name: str) -> Loader:
    return lambda device, weights: FidelityFeatures(name, device, weights)


FEATURES: Registry[Loader] = Registry(
    "features",
    "features",
    {name: _embedded_loader(name) for name in EMBEDDED}
    | {"pixels": lambda device, weights: PixelFeatures()}
    | {name: _fidelity_loader(name) for name in FIDELITY_LAYERS},
)
