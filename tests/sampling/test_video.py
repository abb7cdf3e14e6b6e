"""Clips: their frames are images, the same in every trial and for any batch size."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peers.models_table import built
from peers.pipelines import PROMPTS
from PIL import Image

import autodiffusion_opt as ado
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.sampling.conditions import Prompts
from autodiffusion_opt.sampling.generate import ImageSampler, noise_generator
from autodiffusion_opt.sampling.video import frame_places, pixels_of
from autodiffusion_opt.study.previews import preview_id, read_preview

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its future
CANDIDATE = ado.Candidate.from_time_steps((900, 500))


def sampler(name: str, **more: Any) -> ImageSampler:
    pipeline, call = built(name)
    return ImageSampler(pipeline, Prompts(PROMPTS), call, micro_batch=1, **more)


def images(made_by: ImageSampler, indices: Any) -> torch.Tensor:
    return torch.cat(list(made_by.images(CANDIDATE, indices, seed=3)))


@pytest.mark.parametrize(
    ("count", "frames", "places"), [(5, 1, [2]), (5, 2, [1, 3]), (4, 4, [0, 1, 2, 3]), (81, 3, [13, 40, 67])]
)
def test_frames_are_the_middles_of_equal_parts(count: int, frames: int, places: list[int]) -> None:
    assert frame_places(count, frames) == places


def test_image_i_is_a_frame_of_the_clip_that_the_pipeline_makes_for_it() -> None:
    made_by = sampler("ltx", frames=2)
    got = images(made_by, range(4))
    for clip in range(2):
        with ado.install(made_by.pipeline, CANDIDATE):
            frames = made_by.pipeline(
                PROMPTS[clip], generator=[noise_generator(3, clip)], output_type="pt", **made_by.call
            ).frames[0]
        expected = frames[frame_places(5, 2)].mul(255).round().to(torch.uint8)
        assert torch.equal(got[2 * clip : 2 * clip + 2], expected)
    assert not torch.equal(got[0], got[1])


def test_a_frame_does_not_depend_on_which_others_are_asked_for() -> None:
    made_by = sampler("ltx", frames=2, batch_size=3)
    whole = images(made_by, range(5))
    assert torch.equal(images(made_by, [3, 1]), whole[[3, 1]])


def test_a_clip_with_more_frames_than_it_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"frames must be at most 5, those of a clip of LTXPipeline.*got 6"):
        images(sampler("ltx", frames=6), [0])


def test_frames_of_a_pipeline_that_makes_images_are_refused() -> None:
    with pytest.raises(UserError, match="PixelPipeline makes images, not clips: leave frames out"):
        pixels_of(SimpleNamespace(images=torch.zeros(1, 3, 2, 2)), 2, "PixelPipeline")


def test_a_preview_holds_whole_clips() -> None:
    class Brightness:
        def add(self, block: torch.Tensor) -> None:
            assert block.ndim == 4

        def values(self, *, is_last: bool) -> dict[str, float]:
            return {"brightness": 0.0}

        def of_images(self) -> None:
            return None

    made_by = sampler("ltx", frames=3)
    objective = ImageObjective(
        made_by, ado.ModelInfo(1000), 18, 0, {"brightness": "minimize"}, lambda *_: Brightness(), ""
    )
    (score,) = objective.measure(CANDIDATE, seed=3)
    assert score.preview is not None
    assert torch.equal(score.preview, images(made_by, range(15)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "cogvideox", "animatediff", "ltx"])
def test_a_study_measures_frames_of_clips(name: str, tmp_path: Any) -> None:
    pipeline, call = built(name)
    seen: list[tuple[int, ...]] = []

    def spread(block: torch.Tensor) -> float:
        seen.append(tuple(block.shape))
        return float(block.float().std())

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    conditions = {"kind": "prompts", "file": str(tmp_path / "prompts.txt")}
    study = ado.Study(
        "clips",
        pipeline={"model": pipeline, "micro_batch": 1, "call": call},
        space={"kind": "time-steps", "steps": 2},
        objective=ado.ImageMetric(spread, 4, "spread", conditions=conditions, frames=4),
        optimizer="random",
        trials=2,
        storage=f"sqlite:///{tmp_path}/clips.db",
    )
    study.run()
    assert {shape[:2] for shape in seen} == {(4, 3)}
    trial = next(trial for trial in study.trials() if preview_id(trial) is not None)
    preview = read_preview(trial, f"sqlite:///{tmp_path}/clips.db")
    assert preview is not None
    width, height = Image.open(io.BytesIO(preview)).size
    assert width == 4 * height, "the four frames of the clip are in a row"
