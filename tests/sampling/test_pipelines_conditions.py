"""One condition an image: where it comes from, that it stays, and that text is encoded once a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import pipelines
from peers.samples import load

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import build
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import FidConfig
from autodiffusion_opt.objective.conditions import ConditionsConfig, bind_conditions, read_prompts
from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.sampling.conditions import ENCODERS, Labels, Memory, Prompts
from autodiffusion_opt.sampling.compatibility import check_call
from autodiffusion_opt.sampling.apply import generate

CANDIDATE = Candidate.from_time_steps([901, 640, 222])
OTHER = Candidate.from_time_steps([850, 333])


def sample(pipeline: Any, name: str, conditions: Any, candidate: Candidate = CANDIDATE, **more: Any) -> torch.Tensor:
    call = pipelines.CALLS.get(name, {}) | more
    sizes = {"seed": 0, "batch_size": 2, "micro_batch": 2}
    batches = generate(pipeline, candidate, range(4), **sizes, conditions=conditions, call=call)
    return torch.cat(list(batches))


class Plain:
    """The prompts themselves, and nothing that remembers."""

    def __init__(self, prompts: Prompts) -> None:
        self.arguments = prompts.arguments


class Count:
    """How often the text encoders of a pipeline run."""

    def __init__(self, pipeline: Any) -> None:
        self.calls = 0
        for name in (*ENCODERS, "text_encoder_3"):
            encoder = getattr(pipeline, name, None)
            if encoder is not None:
                # A part of it: what is remembered in place of a forward is a call of the encoder itself.
                list(encoder.children())[-1].register_forward_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.calls += 1


NEGATIVE = tuple(name for name in pipelines.TEXT if name not in ("ldm_text", "latent_consistency"))


@pytest.mark.parametrize(
    ("name", "negative"), [*((name, None) for name in pipelines.TEXT), *((name, "ugly") for name in NEGATIVE)]
)
def test_text_is_encoded_once_and_images_are_those_of_the_prompts(name: str, negative: str | None) -> None:
    pipeline = load(name)
    prompts = Prompts(pipelines.PROMPTS, negative)
    more = {"true_cfg_scale": 2.0} if name == "flux" and negative else {}
    expected = [sample(pipeline, name, Plain(prompts), one, **more) for one in (CANDIDATE, OTHER)]
    count = Count(pipeline)
    assert torch.equal(sample(pipeline, name, prompts, **more), expected[0])
    once = count.calls
    assert once > 0
    assert torch.equal(sample(pipeline, name, prompts, OTHER, **more), expected[1])
    assert torch.equal(sample(pipeline, name, prompts, **more), expected[0])
    assert count.calls == once
    assert "encode_prompt" not in vars(pipeline)
    sample(pipeline, name, Plain(prompts), **more)
    assert count.calls > once


def test_another_guidance_scale_or_prompt_is_encoded_anew() -> None:
    pipeline = load("stable_diffusion")
    prompts, count = Prompts(pipelines.PROMPTS), Count(pipeline)
    guided = Candidate.from_time_steps(CANDIDATE.times, guidance_scale=1.0)  # without a negative prompt
    sample(pipeline, "stable_diffusion", prompts)
    once = count.calls
    found = sample(pipeline, "stable_diffusion", prompts, guided)
    assert count.calls > once
    assert torch.equal(found, sample(pipeline, "stable_diffusion", Plain(prompts), guided))
    changed = sample(pipeline, "stable_diffusion", Prompts(["rain", *pipelines.PROMPTS[1:]]))
    assert not torch.equal(changed[0], sample(pipeline, "stable_diffusion", prompts)[0])


def test_an_exception_leaves_the_pipeline_as_it_was() -> None:
    pipeline = load("ldm_text")
    before = dict(vars(pipeline.bert))
    with pytest.raises(ValueError, match="divisible by 8"):
        sample(pipeline, "ldm_text", Prompts(["rain"]), height=13, width=13)
    assert vars(pipeline.bert) == before


def test_memory_gives_copies_keeps_equal_rows_once_and_passes_on_what_it_cannot_compare() -> None:
    memory, calls = Memory(), []

    def encode(text: list[str], scale: float = 1.0, embeds: torch.Tensor | None = None) -> tuple[Any, ...]:
        calls.append(text)
        rows = torch.arange(6.0).reshape(2, 3) * scale
        return rows, torch.ones(2, 3), None, "text"

    remembered = memory.of("encode", encode)
    first = remembered(["a", "b"])
    first[0].zero_()
    first[1].zero_()
    second = remembered(["a", "b"])
    assert len(calls) == 1
    assert torch.equal(second[0], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(second[1], torch.ones(2, 3))
    assert second[1].is_contiguous()
    assert second[2:] == (None, "text")
    remembered(["a", "b"], scale=2.0)
    remembered(["ab", ""])
    remembered(["a", "b"], embeds=torch.zeros(1))
    remembered(["a", "b"], embeds=torch.zeros(1))
    assert len(calls) == 5
    assert len(next(iter(memory._known.values()))[1]._tensor) == 1


def test_image_i_has_its_own_condition_whatever_the_batch() -> None:
    text, labels = load("stable_diffusion"), load("dit")
    prompts, classes = Prompts(["a", "b", "c"], "ugly"), Labels([7, 9])
    assert prompts.arguments(text, [2, 3, 4]) == {"prompt": ["c", "a", "b"], "negative_prompt": ["ugly"] * 3}
    assert classes.arguments(labels, [3, 4]) == {"class_labels": [9, 7]}
    assert Labels([2, 1]).arguments(load("consistency"), [0, 5]) == {"class_labels": [2, 1], "batch_size": 2}
    assert Labels([2, 1]).arguments(load("adm"), [0, 5]) == {"batch_size": 2}


@pytest.mark.parametrize("name", ["dit", "adm", "consistency"])
def test_labels_reach_the_denoiser(name: str) -> None:
    pipeline = load(name)
    one, other = sample(pipeline, name, Labels([1])), sample(pipeline, name, Labels([1, 2, 1, 2]))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[2], other[2])
    assert not torch.equal(one[1], other[1])
    denoiser = pipeline.transformer if name == "dit" else pipeline.unet
    assert not denoiser._forward_pre_hooks


def test_other_conditions_have_another_identity() -> None:
    found = [Prompts(["a", "b"]), Prompts(["b", "a"]), Prompts(["a", "b"], "c"), Prompts(["a", "b", "c"]), Labels([1])]
    assert len({one.identity for one in found}) == len(found)
    assert Prompts(["a", "b"]).identity == Prompts(("a", "b")).identity


def test_prompts_from_each_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("﻿a cat\n\n  two dogs  \nnaïve café\n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt") == ("a cat", "two dogs", "naïve café")
    captions = [(1, "first"), (2, "second"), (1, "first again")]
    coco = {"annotations": [{"image_id": image, "caption": caption} for image, caption in captions]}
    (tmp_path / "a.json").write_text(json.dumps(coco))
    assert read_prompts(tmp_path / "a.json") == ("first", "second")
    (tmp_path / "b.json").write_text(json.dumps({"annotations": [{"caption": "x"}, {"caption": "y"}]}))
    assert read_prompts(tmp_path / "b.json") == ("x", "y")
    (tmp_path / "a.csv").write_text('id,text\n1,"a cat, asleep"\n2,"two\nlines"\n3,\n')
    assert read_prompts(tmp_path / "a.csv", "text") == ("a cat, asleep", "two\nlines")
    (tmp_path / "a.tsv").write_text("text\tid\nrain\t1\n")
    assert read_prompts(tmp_path / "a.tsv", "text") == ("rain",)


@pytest.mark.parametrize(
    ("file", "content", "column", "message"),
    [
        ("a.txt", " \n\n", None, "at least one prompt; it holds none"),
        ("a.txt", "a cat", "text", "leave column out"),
        ("a.csv", "id,caption\n1,a\n", "captoin", "Did you mean 'caption'"),
        ("a.csv", "id,caption\n1,a\n", None, "must be one of: caption, id"),
        ("a.csv", "", "caption", "there is none"),
        ("a.json", "[1, 2]", None, "as COCO's captions"),
        ("a.json", "{", None, "as COCO's captions"),
        ("a.json", '{"annotations": []}', None, "it holds none"),
        ("a.txt", b"\xff\xfe\x00", None, "UTF-8"),
    ],
)
def test_files_that_hold_no_prompts(
    file: str, content: str | bytes, column: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / file, column)


def bind(name: str, base: Path | None = None, **table: Any) -> Any:
    return bind_conditions(ConditionsConfig(**table), load(name), base)


def test_conditions_that_do_not_fit_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat")
    prompts: dict[str, Any] = {"kind": "prompts", "file": "p.txt", "base": tmp_path}
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("stable_diffusion", {}, r"needs prompts: add a table \[conditions\]"),
        ("dit", {}, "needs class labels"),
        ("adm", {}, "needs class labels"),
        ("consistency", {}, "needs class labels"),
        ("ddim", prompts, "DDIMPipeline takes no prompts"),
        ("dit", prompts, "DiTPipeline takes no prompts"),
        ("ldm_text", prompts | {"negative_prompt": "x"}, "takes no negative_prompt"),
        ("ddim", {"kind": "labels", "classes": 3}, "takes no class labels"),
        ("flux", {"kind": "labels", "classes": 3}, "takes no class labels"),
        ("ddim", {"kind": "labels"}, "how many classes"),
        ("dit", {"kind": "labels", "classes": 1001}, "from 0 to 999, the model's classes; got 1000"),
        ("adm", {"kind": "labels", "classes": [0, -1]}, "got -1"),
        ("stable_diffusion", prompts | {"file": "q.txt"}, "'q.txt' is not there"),
    ]
    for name, table, message in wrong:
        with pytest.raises(UserError, match=message):
            bind(name, **table)


def test_conditions_that_fit(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\nrain")
    assert bind("sdxl", tmp_path, kind="prompts", file="p.txt").prompts == ("a cat", "rain")
    assert bind("sdxl", None, kind="prompts", file=str(tmp_path / "p.txt")).prompts == ("a cat", "rain")
    assert bind("adm", kind="labels").labels == (0, 1, 2)
    assert bind("dit", kind="labels", classes=4).labels == (0, 1, 2, 3)
    assert bind("dit", kind="labels", classes=[5, 5, 2]).labels == (5, 5, 2)
    assert bind("ddpm").arguments(load("ddpm"), [4, 5]) == {"batch_size": 2}


def test_generate_without_conditions_says_what_is_missing() -> None:
    with pytest.raises(UserError, match="needs prompts"):
        sample(load("flux"), "flux", None)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "prompts"}, "needs file"),
        ({"kind": "prompts", "file": "a.txt", "classes": 3}, "takes file, column, negative_prompt; got classes"),
        ({"kind": "labels", "file": "a.txt"}, "takes classes; got file"),
        ({"file": "a.txt"}, "takes no other key; got file"),
        ({"kind": "labels", "classes": 0}, "at least 1"),
        ({"kind": "labels", "classes": []}, "at least 1"),
        ({"kind": "prompt", "file": "a.txt"}, "Did you mean 'prompts'"),
        ({"kind": "prompts", "fil": "a.txt"}, "Did you mean 'file'"),
    ],
)
def test_a_table_that_says_something_wrong(table: dict[str, Any], message: str) -> None:
    objective = {"images": 4, "features": "pixels", "reference": "digits", "conditions": table}
    with pytest.raises(UserError, match=message):
        build(FidConfig, objective, "o.toml")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("generator", "each image has its own"),
        ("prompt", r"in \[conditions\]"),
        ("num_inference_steps", "the candidate says"),
        ("guidence_scale", "Did you mean 'guidance_scale'"),
    ],
)
def test_arguments_of_the_call_that_are_not_the_users_to_give(argument: str, message: str) -> None:
    pipeline = load("stable_diffusion")
    check_call(pipeline, {"eta": 0.5, "guidance_scale": 3.0, "height": 64})
    with pytest.raises(UserError, match=message):
        check_call(pipeline, {argument: 1})


def test_pixel_features_are_means_of_areas() -> None:
    extractor = load_extractor("pixels", torch.device("cpu"))
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    images[1, 2, 14:, :2] = 255
    images[1, 0, 0, 0] = 255
    found = extractor(images)
    assert found.shape == (2, 192)
    assert found.dtype == "float32"
    expected = torch.zeros(3, 8, 8)
    expected[2, 7, 0], expected[0, 0, 0] = 1.0, 0.25
    assert torch.equal(torch.from_numpy(found), torch.stack([torch.zeros(192), expected.flatten()]))
    assert extractor(torch.zeros(1, 1, 5, 9, dtype=torch.uint8)).shape == (1, 64)
