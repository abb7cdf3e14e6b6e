"""Every kind of pipeline, small and with random weights: a study runs, is resumed, and what it found deploys."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peers import pipelines
from peers.samples import BATCH, IMAGES, SEED, UNEVEN, images_of, load
from PIL import Image

import autodiffusion_opt as ado
from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.conditions import Labels
from autodiffusion_opt.sampling.fingerprint import fingerprint
from autodiffusion_opt.sampling.layers import list_layers
from autodiffusion_opt.sampling.load import SHORT_NAMES, denoiser_of, load_pipeline
from autodiffusion_opt.sampling.apply import noise_generator, to_uint8
from autodiffusion_opt.study.run import Study, Watch

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

NAMES = tuple(pipelines.BUILDERS)


def call_by_hand(pipeline: Any, name: str, indices: list[int], **more: Any) -> torch.Tensor:
    """As a user calls diffusers: nothing of ours but the noise. What is not "pt" comes as (N, H, W, C)."""
    given: dict[str, Any] = {"generator": [noise_generator(SEED, index) for index in indices]}
    if name in pipelines.TEXT:
        given["prompt"] = [pipelines.PROMPTS[index % len(pipelines.PROMPTS)] for index in indices]
    if name in ("dit", "consistency"):
        given["class_labels"] = [(0, 2, 1)[index % 3] for index in indices]
    if name not in (*pipelines.TEXT, "dit"):
        given["batch_size"] = len(indices)
    with _labels_in(pipeline, indices) if name == "adm" else nullcontext():
        images = pipeline(**given, **pipelines.CALLS.get(name, {}), output_type="pt", **more).images
    return torch.from_numpy(images).permute(0, 3, 1, 2) if isinstance(images, np.ndarray) else images


def _labels_in(pipeline: Any, indices: list[int]) -> AbstractContextManager[None]:
    labels = Labels((0, 2, 1))
    labels.arguments(pipeline, indices)
    return labels.around(pipeline)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of colour images."""
    folder = tmp_path_factory.mktemp("reference")
    noise = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def write_study(folder: Path, name: str, reference: Path) -> Path:
    """A study of a kind: 5 trials, three steps, 4 images in batches of 3; its prompts in a file beside it."""
    (folder / "prompts.txt").write_text("\n".join(pipelines.PROMPTS))
    table = ""
    if name in pipelines.TEXT:
        table = '[objective.conditions]\nkind = "prompts"\nfile = "prompts.txt"'
    elif name in pipelines.CLASSES:
        table = '[objective.conditions]\nkind = "labels"\nclasses = [0, 2, 1]'
    call = "\n".join(f"{key} = {json.dumps(value)}" for key, value in pipelines.CALLS.get(name, {}).items())
    path = folder / f"{name}.toml"
    path.write_text(f"""
trials = 5
[space]
kind = "time-steps"
steps = 3
[space.pipeline]
model = "{pipelines.saved(name)}"
device = "cpu"
batch_size = {BATCH}
micro_batch = {BATCH}
[space.pipeline.call]
{call}
[objective]
kind = "fid"
images = {IMAGES}
seed = {SEED}
features = "pixels"
reference = "{reference}"
{table}
[optimizer]
kind = "random"
""")
    return path


class Recorder(Watch):
    """Keeps the images that each trial's features were taken of."""

    def __init__(self, study: Study) -> None:
        self.seen: dict[Candidate, list[torch.Tensor]] = {}
        self._now: list[torch.Tensor] = []
        extractor = study.problem.objective.extractor

        def recording(images: torch.Tensor) -> Any:
            self._now.append(images.clone())
            return extractor(images)

        study.problem.objective.extractor = recording  # type: ignore[assignment]

    def proposed(self, number: int, candidate: Candidate) -> None:
        self._now = self.seen.setdefault(candidate, [])


@pytest.mark.parametrize("name", NAMES)
def test_a_study_runs_is_resumed_and_its_best_candidate_deploys(
    name: str, reference: Path, tmp_path: Path, url: str
) -> None:
    path = write_study(tmp_path, name, reference)
    seen: dict[Candidate, list[torch.Tensor]] = {}
    for trials in (2, 5):  # the second run loads the model anew and goes on
        study = Study.load(path, storage=url)
        recorder = Recorder(study)
        assert len(study.run(trials, watch=recorder)) == trials
        seen |= recorder.seen
    best, value = study.best()[0]
    assert np.isfinite(value)
    (tmp_path / "best.json").write_text(best.to_json())

    fresh = ado.apply(load(name), tmp_path / "best.json")
    filled = [0, 1, 2], [3, 3, 3]  # the last batch is filled up
    found = torch.cat([to_uint8(call_by_hand(fresh, name, indices, num_inference_steps=3)) for indices in filled])
    assert torch.equal(found[:IMAGES], torch.cat(seen[best]))
    assert found.float().std() > 10


def test_a_changed_file_of_prompts_is_another_study(reference: Path, tmp_path: Path, url: str) -> None:
    path = write_study(tmp_path, "stable_diffusion", reference)
    Study.load(path, storage=url).run(1)
    with (tmp_path / "prompts.txt").open("a") as file:
        file.write("\none more")
    with pytest.raises(UserError, match="started with another definition"):
        Study.load(path, storage=url).run(2)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "adm"])
def test_a_joint_study_ranks_the_layers_under_the_same_conditions(
    name: str, reference: Path, tmp_path: Path, url: str
) -> None:
    path = write_study(tmp_path, name, reference)
    layers = len(list_layers(denoiser_of(load(name))))
    joint = f'kind = "joint"\nlayers = "ranked"\nn_max = {3 * layers}\nsteps_min = 3\nsteps_max = 4'
    path.write_text(path.read_text().replace('kind = "time-steps"\nsteps = 3', joint))
    study = Study.load(path, storage=url)
    study.run(5)
    assert all(sum(layers - len(gone) for gone in one.removed) <= 3 * layers for one, _ in study.best(5))
    assert len(study.problem.info.ranking) == 3


# The schedulers that each kind of pipeline can run, by short name.
DIFFUSION = ("ddim", "ddpm", "pndm", "dpmsolver++", "dpmsolver-singlestep", "unipc", "deis", "lcm", "tcd")
SCALED = ("lms", "euler", "euler-ancestral", "heun")
FITTING = {
    "stable_diffusion": (*DIFFUSION, *SCALED),
    "sdxl": ("ddim", "euler", "dpmsolver++"),
    "pixart_alpha": ("ddim", "dpmsolver++", "euler"),
    "dit": ("ddim", "pndm", "dpmsolver++", "unipc"),
    "ldm": ("ddim", "pndm", "euler", "dpmsolver++"),
    "ddpm": ("ddpm", "ddim", "dpmsolver++"),
    "sd3": ("flow-euler", "flow-heun", "unipc", "dpmsolver++"),
    "flux": ("flow-euler", "unipc"),
}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": False}


def settings_of(name: str, scheduler: str) -> dict[str, Any]:
    if name in ("sd3", "flux") and not scheduler.startswith("flow"):
        return FLOW if scheduler == "unipc" else {key: FLOW[key] for key in FLOW if key != "use_dynamic_shifting"}
    if scheduler == "pndm":
        return {"skip_prk_steps": True, "timestep_spacing": "leading"}
    if (name, scheduler) == (
        "ldm",
        "euler",
    ):  # LDMPipeline scales its noise before it sets the times: "leading" is late
        return {"timestep_spacing": "linspace"}
    # diffusers' DDIM is wrong on its own "linspace" times, which do not lie T // N apart.
    return {"timestep_spacing": "leading"} if scheduler == "ddim" else {}


def own_times(scheduler: Any) -> list[float]:
    """The times that diffusers sampled at: flow matching's are its sigmas; some call a time twice."""
    if hasattr(scheduler, "alphas_cumprod") and not scheduler.config.get("use_flow_sigmas"):
        called = scheduler.timesteps.double()
    else:
        called = scheduler.sigmas[:-1].double() * 1000
    return sorted(set(called.tolist()), reverse=True)


def uncut(scheduler: Any) -> None:
    """Under use_flow_sigmas diffusers cuts the model's times, not the sigmas, to integers; here they agree."""
    own = scheduler.set_timesteps

    @wraps(own)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        own(*args, **kwargs)
        scheduler.timesteps = scheduler.sigmas[:-1] * 1000

    scheduler.set_timesteps = set_timesteps


@pytest.mark.parametrize(("name", "scheduler"), [(name, one) for name, all_ in FITTING.items() for one in all_])
def test_diffusers_own_times_give_the_images_of_the_untouched_pipeline(name: str, scheduler: str) -> None:
    pipeline = load(name, scheduler=scheduler, scheduler_settings=settings_of(name, scheduler))
    if name == "ldm":  # images without the codes that latents are rounded to, which hide or enlarge a difference
        pipeline.vqvae.decode = partial(pipeline.vqvae.decode, force_not_quantize=True)
    if pipeline.scheduler.config.get("use_flow_sigmas"):
        uncut(pipeline.scheduler)
    before = call_by_hand(pipeline, name, [0, 1], num_inference_steps=5)
    times = own_times(pipeline.scheduler)
    assert len(times) in (4, 5)
    ado.apply(pipeline, Candidate.from_time_steps(times))
    after = call_by_hand(pipeline, name, [0, 1], num_inference_steps=len(times))
    assert (after - before).abs().max() < 1e-4
    assert before.std() > 0.05
    ado.apply(pipeline, Candidate.from_time_steps([*times[:-2], times[-2] - 30, times[-1]]))
    assert (call_by_hand(pipeline, name, [0, 1], num_inference_steps=len(times)) - before).abs().max() > 1e-4


# Pairs that diffusers takes and then raises in the middle of the call, or samples wrongly.
UNFIT = {
    ("ddpm", "euler"): "init_noise_sigma and scale_model_input",
    ("ddpm", "unipc"): "step generator",
    ("ddim", "dpmsolver++"): "step eta, use_clipped_model_output",
    ("dit", "euler"): "applies init_noise_sigma,",
    ("ldm_text", "heun"): "init_noise_sigma and scale_model_input",
    ("stable_diffusion", "flow-euler"): "made for PNDMScheduler",
    ("sd3", "ddim"): "made for FlowMatchEulerDiscreteScheduler",
    ("flux", "unipc"): "set use_flow_sigmas",
    ("flux", "flow-heun"): "gives its scheduler sigmas",
}


@pytest.mark.parametrize(("name", "scheduler"), list(UNFIT))
def test_a_scheduler_that_does_not_fit_is_refused(name: str, scheduler: str) -> None:
    with pytest.raises(UserError, match=UNFIT[name, scheduler]):
        load(name, scheduler=scheduler)


def test_apply_refuses_them_on_a_pipeline_of_the_users_own() -> None:
    pipeline = diffusers.DDPMPipeline.from_pretrained(pipelines.saved("ddpm"))
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(UserError, match="its images would be wrong"):
        ado.apply(pipeline, UNEVEN)


def test_a_consistency_models_own_scheduler_is_refused_also_when_replaced(tmp_path: Path) -> None:
    pipeline = pipelines.BUILDERS["consistency"]()
    pipeline.scheduler = diffusers.CMStochasticIterativeScheduler()
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="CMStochasticIterativeScheduler"):
        load_pipeline(str(tmp_path), device="cpu")
    with pytest.raises(UserError, match="noise scale of its own"):
        load_pipeline(str(tmp_path), device="cpu", scheduler="euler")


@pytest.mark.parametrize("name", NAMES)
def test_removed_layers_guidance_and_times_leave_no_trace(name: str, tmp_path: Path) -> None:
    pipeline = load(name)
    takes_guidance = name in (*pipelines.TEXT, "dit")
    plain = Candidate.from_time_steps([901, 640, 222])
    layer = next(one.index for one in list_layers(denoiser_of(pipeline)) if one.removable)
    steps = Candidate.from_time_steps([901, 640, 222], removed=[[layer], [], [layer]])
    before = images_of(pipeline, name, plain)
    assert not torch.equal(images_of(pipeline, name, steps), before)
    if takes_guidance:
        guided = Candidate.from_time_steps([901, 640, 222], guidance_scale=3.25)
        assert not torch.equal(images_of(pipeline, name, guided), before)
    assert torch.equal(images_of(pipeline, name, plain), before)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "dit", "ddim"])
def test_a_pipeline_is_saved_while_a_candidate_is_applied(name: str, tmp_path: Path) -> None:
    folder = str(pipelines.saved(name))
    pipeline = load(name)
    before = images_of(pipeline, name)
    prints = {fingerprint(one, folder) for one in (pipeline, load(name))}
    ado.apply(pipeline, Candidate.from_time_steps([900, 300]))
    pipeline.save_pretrained(tmp_path)
    again = load_pipeline(str(tmp_path), device="cpu")
    assert type(again) is type(load(name))
    assert torch.equal(images_of(again, name), before)
    assert prints == {fingerprint(load(name), folder)}
    assert fingerprint(load("ddpm"), str(pipelines.saved("ddpm"))) not in prints


def test_other_num_inference_steps_warn_once() -> None:
    pipeline = ado.apply(load("stable_diffusion"), UNEVEN)
    with pytest.warns(UserWarning, match="num_inference_steps=7 is not used"):
        first = call_by_hand(pipeline, "stable_diffusion", [0], num_inference_steps=7)
    again = call_by_hand(pipeline, "stable_diffusion", [0], num_inference_steps=7)
    assert torch.equal(first, again)
    assert torch.equal(first, call_by_hand(pipeline, "stable_diffusion", [0], num_inference_steps=3))


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "dit", "adm"])
def test_an_image_is_the_same_in_any_batch(name: str) -> None:
    pipeline = load(name)
    one, three, all_ = (images_of(pipeline, name, batch_size=size) for size in (1, 3, 8))
    assert torch.equal(one, three)
    assert torch.equal(one, all_)
    assert (one[0].int() - one[1].int()).abs().max() > 20


def test_every_short_name_is_fitted_to_some_pipeline() -> None:
    assert set(SHORT_NAMES) - {"plms"} == {one for all_ in FITTING.values() for one in all_}


def test_use_the_result_of_a_stable_diffusion_search(tmp_path: Path) -> None:
    """README, "Use the result"."""
    (tmp_path / "best.json").write_text(UNEVEN.to_json())
    pipe = diffusers.DiffusionPipeline.from_pretrained(pipelines.saved("stable_diffusion"))
    pipe.set_progress_bar_config(disable=True)
    pipe = ado.apply(pipe, str(tmp_path / "best.json"))
    image = pipe("a cat", num_inference_steps=3, generator=torch.manual_seed(0)).images[0]
    assert image.size == (64, 64)
    ado.remove(pipe)
    plain = pipe("a cat", num_inference_steps=3, generator=torch.manual_seed(0)).images[0]
    assert plain != image


def test_use_the_result_of_a_flux_search() -> None:
    pipe = diffusers.FluxPipeline.from_pretrained(pipelines.saved("flux"))
    pipe.set_progress_bar_config(disable=True)
    pipe = ado.apply(pipe, ado.Candidate.from_time_steps([1000, 812.5, 250]))
    image = pipe("a cat", height=16, width=16, num_inference_steps=3, generator=torch.manual_seed(0)).images[0]
    assert image.size == (16, 16)
