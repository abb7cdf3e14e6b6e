"""Feature extractors: uint8 images (N, C, H, W) in, float32 features (N, D) out.

The embedded models bring their own, ``pixels`` needs no training; the others are torch-fidelity's, imported only when
they are asked for. A registered extractor is a function ``(device, weights) -> Extractor``. A file is a network of
one's own, see :mod:`~autodiffusion_opt.objective.networks`.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from autodiffusion_opt.config import Registry
from autodiffusion_opt.errors import UserError, reason_of, unknown
from autodiffusion_opt.objective.networks import NetworkFeatures, is_network
from autodiffusion_opt.objective.pickles import no_pickles
from autodiffusion_opt.paths import absolute
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


def load_extractor(name: str, device: torch.device, weights: Path | None = None, base: Path | None = None) -> Extractor:
    """The extractor of a name, or of a file.

    Args:
        name: a name in :data:`FEATURES`, a short name, or the path of a network.
        device: where it runs.
        weights: a file of weights, instead of the download at first use (torch-fidelity's only).
        base: the folder that a relative path starts from; None: the working folder.

    Raises:
        UserError: for an unknown name, a file that holds no network, or weights that cannot be had.
    """
    if is_network(name):
        if weights is not None:
            raise UserError(f"features_weights: the network in {name} has weights of its own; remove features_weights")
        return NetworkFeatures(absolute(name, base), device)
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


def _fidelity_network(name: str, layer: str, weights: Path | None) -> Any:
    from torch_fidelity.utils import create_feature_extractor

    if weights is not None and not weights.is_file():
        raise UserError(f"features_weights: the file {weights} must exist")
    try:
        with no_pickles(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # TorchScript is deprecated
            file = _downloaded(name) if weights is None and name.startswith("clip") else weights
            more = {} if file is None else {"feature_extractor_weights_path": str(file)}
            return create_feature_extractor(name, [layer], cuda=False, verbose=False, **more)
    except pickle.UnpicklingError:
        raise UserError(
            f"features {name!r}: {weights or 'what was downloaded'} must be a file of weights alone, as torch.save "
            "writes a state dict; it holds other objects, which are not read since they can run code"
        ) from None
    except NotImplementedError:
        raise UserError(
            f"features_weights: torch-fidelity reads no file of weights for {name!r}; {_where_weights_go(name)}"
        ) from None
    except (OSError, RuntimeError, KeyError) as error:
        reason = reason_of(error)
        if weights is not None:
            raise UserError(f"features_weights: {weights} does not hold the weights of {name!r} ({reason})") from None
        raise UserError(
            f"features {name!r}: its weights cannot be had ({reason}). They are downloaded at first use; without a "
            f"network, {_where_weights_go(name)}"
        ) from None


def _downloaded(name: str) -> Path:
    """The file of CLIP's weights, downloaded where it is not there.

    torch-fidelity would read it with ``torch.load``, which refuses TorchScript where pickles are forbidden. A path it
    gives to ``torch.jit.load``, which reads no pickles of Python's.
    """
    from torch_fidelity.feature_extractor_clip import MODEL_METADATA

    url, file = _weights_file(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), MODEL_METADATA[name]["hash"], progress=False)
    return path


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
