"""What a file under ``objectives/`` may say. Imports neither torch nor diffusers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from autodiffusion_opt.config import Config
from autodiffusion_opt.objective.conditions import ConditionsConfig


class ObjectiveConfig(Config):
    """What all kinds of objective have.

    Attributes:
        images: how many images a trial generates.
        seed: of their noise: the same in every trial, so that candidates are compared on common random numbers.
        features: the extractor (``digits``, or one of torch-fidelity's).
        features_weights: a file of its weights, instead of the download.
        reference: ``digits``, a folder of images, or an ``.npz`` file with ``mu`` and ``sigma``.
        conditions: the table ``[conditions]``: prompts or class labels.
    """

    kind: str
    images: int = Field(ge=2)
    seed: int = Field(default=0, ge=0)
    features: str
    features_weights: str | None = None
    reference: str
    conditions: ConditionsConfig = Field(default_factory=ConditionsConfig)


class FidConfig(ObjectiveConfig):
    """``kind = "fid"``: the Fréchet distance between features of generated images and those of the reference."""

    kind: Literal["fid"] = "fid"


KINDS: dict[str, type[ObjectiveConfig]] = {"fid": FidConfig}
