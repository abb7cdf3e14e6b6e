"""Embedded models: each offers a pipeline, features and images under one name, and is known by that name alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import autodiffusion_opt
from autodiffusion_opt.objective.features import FEATURES
from autodiffusion_opt.objective.references import load_reference
from autodiffusion_opt.sampling.load import load_pipeline, model_folder
from autodiffusion_opt.zoo import EMBEDDED

PACKAGE = Path(autodiffusion_opt.__file__).parent


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_an_embedded_name_is_a_model_features_and_a_reference(name: str) -> None:
    embedded = EMBEDDED[name]
    module = embedded.module()
    assert embedded.name == name
    assert model_folder(name) == embedded.pipeline
    assert isinstance(load_pipeline(name, device="cpu"), DiffusionPipeline)
    images = module.load_images()
    assert (images.dtype, images.ndim) == (torch.uint8, 4)
    extractor = FEATURES[name](torch.device("cpu"), None)
    assert len(extractor(images[:3])) == 3
    assert load_reference(name, extractor).statistics.count == len(images)
    assert module.IMAGES.is_file()
    assert module.FEATURES.is_file()


def string_constants(tree: ast.AST) -> list[str]:
    """All strings in the code, without docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    heads = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    documented = {id(head.value) for head in heads if isinstance(head, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documented]
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_no_file_outside_the_zoo_names_an_embedded_model(name: str) -> None:
    files = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "zoo" not in path.parents]
    assert len(files) > 40
    guilty = [str(path.relative_to(PACKAGE)) for path in files if name in string_constants(ast.parse(path.read_text()))]
    assert guilty == []
