"""From image to image with a candidate: how many steps are run, whatever the call asks for."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from marks import slow_but
from peers.image_pipelines import BUILDERS, FLOW

from autodiffusion_opt import Candidate, UserError, apply, remove
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.hooks import before_forward
from autodiffusion_opt.sampling.schedule import default_times

pytestmark = [
    # diffusers 0.42's and transformers' own
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]
TIMES = (926.0, 690.0, 424.0, 153.0)
CANDIDATE = Candidate.from_time_steps(TIMES)
# Strength -> the times that are run: those below the share of the 1,000 times, at least one.
BELOW = {1.0: TIMES, 0.93: TIMES, 0.8: TIMES[1:], 0.6905: TIMES[2:], 0.5: TIMES[2:], 0.2: TIMES[3:], 0.02: TIMES[3:]}
# σ = 0.5 is σ = 0.75 after a shift of 3, and 0.2 is 0.43.
SHIFTED = {1.0: TIMES, 0.93: TIMES, 0.8: TIMES[1:], 0.5: TIMES[1:], 0.2: TIMES[2:], 0.02: TIMES[3:]}
# exp(0.5): Flux's own shift for so small an image.
FLUX = {1.0: TIMES, 0.93: TIMES, 0.8: TIMES[1:], 0.5: TIMES[2:], 0.2: TIMES[3:], 0.02: TIMES[3:]}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def scheduler(name: str) -> Any:
    """As Stable Diffusion has it."""
    kind = getattr(diffusers, name)
    wanted = {"steps_offset": 1, "timestep_spacing": "leading", "skip_prk_steps": True, "clip_sample": False}
    taken = inspect.signature(kind.__init__).parameters
    return kind(**BETAS, **{key: value for key, value in wanted.items() if key in taken})


def called_at(pipeline: Any, **call: Any) -> list[float]:
    """The times at which a call of the pipeline calls its denoiser."""
    times: list[float] = []

    def see(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        time = float(torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()[0])
        times.append(round(time * (1000 if "Flux" in type(pipeline).__name__ else 1), 3))

    with before_forward(denoiser_of(pipeline), see):
        pipeline(**call, generator=torch.Generator().manual_seed(0))
    return times


@pytest.mark.parametrize("steps", [50, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (4, 1))])
@pytest.mark.parametrize(
    "name", slow_but([name for name in BUILDERS if name != "controlnet"], "inpaint", "sdxl_img2img", "sd3_img2img")
)
def test_strength_chooses_how_many_of_the_candidates_steps_are_run_and_the_number_asked_for_none(
    name: str, steps: int
) -> None:
    pipeline, call = BUILDERS[name]()
    expected = {"sd3_img2img": SHIFTED}.get(name, FLUX if name in FLOW else BELOW)
    for strength, times in expected.items():
        apply(pipeline, CANDIDATE)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            seen = called_at(pipeline, **call, strength=strength, num_inference_steps=steps)
            again = called_at(pipeline, **call, strength=strength, num_inference_steps=steps)
        assert tuple(dict.fromkeys(seen)) == times
        assert again == seen
        said = [str(warning.message) for warning in caught if warning.filename == __file__]
        verb = "was" if len(times) == 1 else "were"
        message = f"strength={strength}: {len(times)} of the candidate's 4 steps {verb} run, from time {times[0]:g}"
        assert [text for text in said if text.startswith("strength")] == [message] * (times != TIMES)
        assert sum(text.startswith("num_inference_steps=") for text in said) == (steps != 4)
        assert remove(pipeline) is pipeline


def test_from_noise_with_a_controlnet_every_step_is_run() -> None:
    pipeline, call = BUILDERS["controlnet"](scheduler("DDIMScheduler"))
    apply(pipeline, CANDIDATE)
    with pytest.warns(UserWarning, match="num_inference_steps=50 is not used"):
        assert called_at(pipeline, **call, num_inference_steps=50) == list(TIMES)


SCHEDULERS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", ["img2img", "inpaint"])
def test_every_scheduler_runs_from_an_image_and_gives_finite_images(kind: str, name: str) -> None:
    pipeline, call = BUILDERS[kind](scheduler(name))
    apply(pipeline, CANDIDATE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        times = called_at(pipeline, **call, strength=0.5)
        images = pipeline(**call, strength=0.5).images
    layouts = {"PNDMScheduler": [424.0, 153.0, 153.0], "HeunDiscreteScheduler": [424.0, 153.0, 153.0]}
    assert times == layouts.get(name, [424.0, 153.0])
    assert torch.isfinite(images).all()


# In diffusers these three start in the middle of a past that they do not have: LMS weighs slopes that are not there.
ELSEWHERE = ("PNDMScheduler", "LMSDiscreteScheduler", "DPMSolverSinglestepScheduler")


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in ELSEWHERE])
@pytest.mark.parametrize("strength", [0.5, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.25, 0.75, 1.0))])
def test_on_diffusers_own_times_the_images_are_diffusers_own(name: str, strength: float) -> None:
    """Eight steps: each strength is a whole number of them."""
    pipeline, call = BUILDERS["img2img"](scheduler(name))
    images = []
    for times in (None, default_times(pipeline.scheduler, 8)):
        if times is not None:
            apply(pipeline, Candidate.from_time_steps(times))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            generator = torch.Generator().manual_seed(0)
            images.append(pipeline(**call, strength=strength, num_inference_steps=8, generator=generator).images)
    assert (images[0] - images[1]).abs().max() <= 1e-5 * images[0].abs().max()


def test_sdxls_denoising_start_is_a_strength_and_is_told() -> None:
    pipeline, call = BUILDERS["sdxl_img2img"]()
    apply(pipeline, CANDIDATE)
    latents = torch.zeros(1, 4, 8, 8)
    with pytest.warns(UserWarning, match="denoising_start=0.5: 2 of the candidate's 4 steps were run, from time 424"):
        assert called_at(pipeline, **{**call, "image": latents}, denoising_start=0.5) == [424.0, 153.0]


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"])
def test_a_pipeline_that_does_not_scale_its_input_still_refuses_noise_of_another_size(name: str) -> None:
    pipeline, _ = BUILDERS["kandinsky_img2img"](scheduler(name))
    with pytest.raises(UserError, match="needs a pipeline that applies scale_model_input"):
        apply(pipeline, CANDIDATE)


def test_layers_are_left_out_at_the_steps_of_the_candidate_also_where_sampling_starts_later() -> None:
    pipeline, call = BUILDERS["img2img"](scheduler("DDIMScheduler"))
    block, ran = pipeline.unet.down_blocks[0].resnets[0], []
    for without in range(4):
        apply(pipeline, Candidate.from_time_steps(TIMES, removed=[[0] if step == without else [] for step in range(4)]))
        hook = block.conv1.register_forward_hook(lambda *_: ran.append(True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            called_at(pipeline, **call, strength=0.5)
        hook.remove()
        assert len(ran) == (2 if without < 2 else 1)
        ran.clear()


def test_the_table_in_the_docs_is_the_one_that_is_tested() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "applying.md").read_text(encoding="utf-8")
    rows = text.partition("<!-- image-to-image -->\n")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    for column, tested in enumerate((BELOW, SHIFTED, FLUX), 1):
        listed = {float(row[0]): tuple(float(time) for time in row[column].split(",")) for row in cells}
        assert listed == {strength: times for strength, times in tested.items() if strength in listed}
    assert len(cells) == len(SHIFTED)
