"""One condition an image: where it comes from, that it stays, and that text is encoded once a study."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from peers import pipelines
from peers.samples import load

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import build
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective import MetricConfig
from autodiffusion_opt.sampling.conditions import ENCODERS, Labels, Memory, Prompts, load_conditions, read_prompts
from autodiffusion_opt.sampling.config import ConditionsConfig
from autodiffusion_opt.sampling.generate import ImageSampler

CANDIDATE = Candidate.from_time_steps([901, 640, 222])
OTHER = Candidate.from_time_steps([850, 333])


def sample(pipeline: Any, name: str, conditions: Any, candidate: Candidate = CANDIDATE, **more: Any) -> torch.Tensor:
    call = pipelines.CALLS.get(name, {}) | more
    sampler = ImageSampler(pipeline, conditions, call, micro_batch=2, batch_size=2)
    return torch.cat(list(sampler.images(candidate, range(4), 0)))


class Plain(Prompts):
    """The prompts themselves, and nothing that remembers."""

    def around(self, pipeline: Any) -> Any:
        return nullcontext()


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


WITH_NEGATIVE = [(name, "ugly") for name in NEGATIVE]


@pytest.mark.parametrize(
    ("name", "negative"), slow_but([*((name, None) for name in pipelines.TEXT), *WITH_NEGATIVE], *WITH_NEGATIVE[:3])
)
def test_text_is_encoded_once_and_images_are_those_of_the_prompts(name: str, negative: str | None) -> None:
    pipeline = load(name)
    prompts, plain = Prompts(pipelines.PROMPTS, negative), Plain(pipelines.PROMPTS, negative)
    more = {"true_cfg_scale": 2.0} if name == "flux" and negative else {}
    expected = [sample(pipeline, name, plain, one, **more) for one in (CANDIDATE, OTHER)]
    count = Count(pipeline)
    assert torch.equal(sample(pipeline, name, prompts, **more), expected[0])
    once = count.calls
    assert once > 0
    assert torch.equal(sample(pipeline, name, prompts, OTHER, **more), expected[1])
    assert torch.equal(sample(pipeline, name, prompts, **more), expected[0])
    assert count.calls == once
    assert "encode_prompt" not in vars(pipeline)
    sample(pipeline, name, plain, **more)
    assert count.calls > once


def test_another_guidance_scale_or_prompt_is_encoded_anew() -> None:
    pipeline = load("stable_diffusion")
    prompts, count = Prompts(pipelines.PROMPTS), Count(pipeline)
    guided = Candidate.from_time_steps(CANDIDATE.times, guidance_scale=1.0)  # without a negative prompt
    sample(pipeline, "stable_diffusion", prompts)
    once = count.calls
    found = sample(pipeline, "stable_diffusion", prompts, guided)
    assert count.calls > once
    assert torch.equal(found, sample(pipeline, "stable_diffusion", Plain(pipelines.PROMPTS), guided))
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
    prompts, classes = Prompts(["a", "b", "c"], "ugly"), Labels([7, 9, 4])
    assert prompts.arguments(text, [2, 3, 4]) == {"prompt": ["c", "a", "b"], "negative_prompt": ["ugly"] * 3}
    one_by_one = [classes.label(index) for index in range(9)]
    assert classes.arguments(labels, [3, 4]) == {"class_labels": one_by_one[3:5]}
    assert classes.arguments(load("consistency"), [8, 0]) == {"class_labels": one_by_one[::-8], "batch_size": 2}
    assert classes.arguments(load("adm"), [0, 5]) == {"batch_size": 2}


def test_labels_come_in_a_random_order_each_once_before_any_comes_again() -> None:
    labels = Labels(range(1000))
    runs = [[labels.label(run * 1000 + place) for place in range(1000)] for run in range(3)]
    assert all(sorted(run) == list(range(1000)) for run in runs)
    assert len({tuple(run) for run in runs}) == 3
    # Of half as many images as classes, some are of every tenth of the classes, and so are the first of each run.
    assert {label // 100 for label in runs[0][:500]} == set(range(10))
    assert runs[0][:3] != [0, 1, 2]
    assert [Labels(range(1000)).label(index) for index in range(1000)] == runs[0]


@pytest.mark.parametrize("name", ["dit", "adm", "consistency"])
def test_labels_reach_the_denoiser(name: str) -> None:
    pipeline = load(name)
    mixed = Labels([1, 2])
    ones, both = sample(pipeline, name, Labels([1])), sample(pipeline, name, mixed)
    for index in range(len(ones)):
        assert torch.equal(ones[index], both[index]) == (mixed.label(index) == 1)
    denoiser = pipeline.transformer if name == "dit" else pipeline.unet
    assert not denoiser._forward_pre_hooks


def test_whoever_watches_the_denoiser_sees_the_labels_also_who_came_first() -> None:
    """As the ranking of layers does, which keeps the calls as they came."""
    pipeline, seen = load("adm"), []
    pipeline.unet.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["class_labels"].tolist()), with_kwargs=True
    )
    labels = Labels([1, 2])
    sample(pipeline, "adm", labels)
    assert seen == [[labels.label(0), labels.label(1)]] * 3 + [[labels.label(2), labels.label(3)]] * 3


def test_other_conditions_have_another_identity() -> None:
    found = [Prompts(["a", "b"]), Prompts(["b", "a"]), Prompts(["a", "b"], "c"), Prompts(["a", "b", "c"])]
    found += [Labels([1]), Labels([2]), Labels([1, 2]), Labels([12])]
    assert len({one.identity for one in found}) == len(found)
    assert Prompts(["a", "b"]).identity == Prompts(("a", "b")).identity


def test_prompts_are_read_from_each_kind_of_file(tmp_path: Path) -> None:
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
def test_files_that_hold_no_prompts_are_refused(
    file: str, content: str | bytes, column: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / file, column)


def conditions_for(name: str, base: Path | None = None, **table: Any) -> Any:
    return load_conditions(ConditionsConfig(**table), load(name), base)


def test_conditions_that_do_not_fit_the_pipeline_are_refused(tmp_path: Path) -> None:
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
            conditions_for(name, **table)


def test_conditions_that_fit_are_taken(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\nrain")
    assert conditions_for("sdxl", tmp_path, kind="prompts", file="p.txt").prompts == ("a cat", "rain")
    assert conditions_for("sdxl", None, kind="prompts", file=str(tmp_path / "p.txt")).prompts == ("a cat", "rain")
    assert conditions_for("adm", kind="labels").labels == (0, 1, 2)
    assert conditions_for("dit", kind="labels", classes=4).labels == (0, 1, 2, 3)
    assert conditions_for("dit", kind="labels", classes=[5, 5, 2]).labels == (5, 5, 2)
    assert conditions_for("ddpm").arguments(load("ddpm"), [4, 5]) == {"batch_size": 2}


def test_prompts_in_the_table_are_those_of_a_file_that_holds_them(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\ntwo dogs\n")
    in_table = conditions_for("sdxl", kind="prompts", prompts=["a cat", "", "two dogs"], negative_prompt="ugly")
    in_file = conditions_for("sdxl", tmp_path, kind="prompts", file="p.txt", negative_prompt="ugly")
    assert in_table.prompts == ("a cat", "two dogs")
    assert in_table.identity == in_file.identity


def test_a_file_of_prompts_is_looked_for_in_the_folder_that_is_given_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.txt").write_text("a cat")
    monkeypatch.chdir(tmp_path)
    assert conditions_for("sdxl", kind="prompts", file="p.txt").prompts == ("a cat",)
    with pytest.raises(UserError, match=rf"'p\.txt' is not there: there is no file {tmp_path}/empty/p\.txt"):
        conditions_for("sdxl", tmp_path / "empty", kind="prompts", file="p.txt")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "prompts"}, "needs file"),
        ({"kind": "prompts", "file": "a.txt", "prompts": ["a"]}, "needs file, .* or prompts, a list; got both"),
        ({"kind": "prompts", "prompts": []}, "at least one prompt"),
        ({"kind": "prompts", "prompts": [" "]}, "at least one prompt"),
        ({"kind": "prompts", "prompts": ["a"], "column": "b"}, "column is of a file"),
        ({"kind": "labels", "prompts": ["a"]}, "takes classes; got prompts"),
        (
            {"kind": "prompts", "file": "a.txt", "classes": 3},
            "takes prompts, file, column, negative_prompt; got classes",
        ),
        ({"kind": "labels", "file": "a.txt"}, "takes classes; got file"),
        ({"file": "a.txt"}, "takes no other key; got file"),
        ({"kind": "labels", "classes": 0}, "at least 1"),
        ({"kind": "labels", "classes": []}, "at least 1"),
        ({"kind": "prompt", "file": "a.txt"}, "Did you mean 'prompts'"),
        ({"kind": "prompts", "fil": "a.txt"}, "Did you mean 'file'"),
    ],
)
def test_a_table_of_conditions_that_says_something_wrong_is_refused(table: dict[str, Any], message: str) -> None:
    objective = {"kind": "fid", "images": 4, "features": "pixels", "reference": "digits", "conditions": table}
    with pytest.raises(UserError, match=message):
        build(MetricConfig, objective, "o.toml")
