"""Extractors: torch-fidelity's are named as it names them, and no file of weights can run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.features import FIDELITY_LAYERS, load_extractor

CPU = torch.device("cpu")


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


def test_missing_weights_and_misspelt_names() -> None:
    with pytest.raises(UserError, match="must exist"):
        load_extractor("vgg16", CPU, Path("nowhere.pth"))
    with pytest.raises(UserError, match="Did you mean 'inception'"):
        load_extractor("incepton", CPU)
