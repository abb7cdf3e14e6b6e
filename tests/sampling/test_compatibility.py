"""Which schedulers a pipeline can run, which it cannot, and which arguments its call takes."""

from __future__ import annotations

from functools import partial, wraps
from pathlib import Path
from typing import Any

import diffusers
import pytest
from marks import slow_but
from peers import pipelines
from peers.samples import UNEVEN, call_by_hand, load

from autodiffusion_opt import Candidate, UserError, apply
from autodiffusion_opt.sampling.compatibility import RESERVED, check_call, check_compatible, check_replacement
from autodiffusion_opt.sampling.load import SHORT_NAMES, load_pipeline

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

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


def settings_of(name: str, scheduler: str) -> dict[str, Any]:
    if name in ("sd3", "flux") and not scheduler.startswith("flow"):
        return FLOW if scheduler == "unipc" else {key: FLOW[key] for key in FLOW if key != "use_dynamic_shifting"}
    if scheduler == "pndm":
        return {"skip_prk_steps": True, "timestep_spacing": "leading"}
    if (name, scheduler) == ("ldm", "euler"):  # LDMPipeline scales its noise before the times: "leading" is late
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


EVERY = [(name, scheduler) for name, fitting in FITTING.items() for scheduler in fitting]
FIRST = [(name, fitting[0]) for name, fitting in FITTING.items()]


@pytest.mark.parametrize(("name", "scheduler"), slow_but(EVERY, *FIRST))
def test_diffusers_own_times_give_the_images_of_the_untouched_pipeline(name: str, scheduler: str) -> None:
    pipeline = load(name, scheduler=scheduler, scheduler_settings=settings_of(name, scheduler))
    if name == "ldm":  # images without the codes that latents are rounded to, which hide or enlarge a difference
        pipeline.vqvae.decode = partial(pipeline.vqvae.decode, force_not_quantize=True)
    if pipeline.scheduler.config.get("use_flow_sigmas"):
        uncut(pipeline.scheduler)
    before = call_by_hand(pipeline, name, [0, 1], num_inference_steps=5)
    times = own_times(pipeline.scheduler)
    assert len(times) in (4, 5)
    apply(pipeline, Candidate.from_time_steps(times))
    after = call_by_hand(pipeline, name, [0, 1], num_inference_steps=len(times))
    assert (after - before).abs().max() < 1e-4
    assert before.std() > 0.05
    apply(pipeline, Candidate.from_time_steps([*times[:-2], times[-2] - 30, times[-1]]))
    assert (call_by_hand(pipeline, name, [0, 1], num_inference_steps=len(times)) - before).abs().max() > 1e-4


def test_every_short_name_of_a_scheduler_is_fitted_to_some_pipeline() -> None:
    assert set(SHORT_NAMES) - {"plms"} == {one for all_ in FITTING.values() for one in all_}


@pytest.mark.parametrize(("name", "scheduler"), list(UNFIT))
def test_a_scheduler_that_does_not_fit_the_pipeline_is_refused_with_the_reason(name: str, scheduler: str) -> None:
    with pytest.raises(UserError, match=UNFIT[name, scheduler]):
        load(name, scheduler=scheduler)


def test_apply_refuses_an_unfit_scheduler_on_a_pipeline_of_the_users_own() -> None:
    pipeline = diffusers.DDPMPipeline.from_pretrained(pipelines.saved("ddpm"))
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(UserError, match="its images would be wrong"):
        apply(pipeline, UNEVEN)


def test_a_consistency_models_own_scheduler_is_refused_also_when_replaced(tmp_path: Path) -> None:
    pipeline = pipelines.BUILDERS["consistency"]()
    pipeline.scheduler = diffusers.CMStochasticIterativeScheduler()
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="CMStochasticIterativeScheduler"):
        load_pipeline(str(tmp_path), device="cpu")
    with pytest.raises(UserError, match="noise scale of its own"):
        load_pipeline(str(tmp_path), device="cpu", scheduler="euler")


SVD = diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
EDM = diffusers.EDMEulerScheduler()


def test_a_model_made_for_edm_runs_under_either_of_its_schedulers() -> None:
    check_replacement(EDM, diffusers.EDMDPMSolverMultistepScheduler.from_config(EDM.config))
    check_replacement(SVD, diffusers.EDMEulerScheduler(sigma_data=1.0, prediction_type="v_prediction"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (EDM, diffusers.EulerDiscreteScheduler()),
        (EDM, diffusers.EDMEulerScheduler(sigma_data=1.0)),
        (SVD, diffusers.DDIMScheduler(prediction_type="v_prediction")),
        (diffusers.DDIMScheduler(), EDM),
        (diffusers.FlowMatchEulerDiscreteScheduler(), EDM),
        (diffusers.CMStochasticIterativeScheduler(), diffusers.EDMDPMSolverMultistepScheduler()),
    ],
)
def test_a_scheduler_for_another_kind_of_noise_is_refused(before: Any, after: Any) -> None:
    with pytest.raises(UserError, match=r"choose another scheduler|noise scale of its own"):
        check_replacement(before, after)


def test_cosmos_is_refused_whose_first_noise_is_not_that_of_the_first_time() -> None:
    pipeline = object.__new__(diffusers.CosmosTextToWorldPipeline)
    vars(pipeline)["scheduler"] = EDM
    with pytest.raises(UserError, match="applies init_noise_sigma, and CosmosTextToWorldPipeline does not"):
        check_compatible(pipeline)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("generator", "each image has its own"),
        ("prompt", r"in \[conditions\]"),
        ("num_inference_steps", "the candidate says"),
        ("guidence_scale", "Did you mean 'guidance_scale'"),
        ("self", "an argument of StableDiffusionPipeline must be one of"),
    ],
)
def test_arguments_of_the_call_that_are_not_the_users_to_give_are_refused(argument: str, message: str) -> None:
    pipeline = load("stable_diffusion")
    check_call(type(pipeline), {"eta": 0.5, "guidance_scale": 3.0, "height": 64})
    with pytest.raises(UserError, match=message):
        check_call(type(pipeline), {argument: 1})


def test_no_reserved_argument_is_taken_or_offered() -> None:
    pipeline = load("stable_diffusion")
    for argument in RESERVED:
        with pytest.raises(UserError, match=f"call: {argument} cannot be set here"):
            check_call(type(pipeline), {argument: 1})
    with pytest.raises(UserError) as error:
        check_call(type(pipeline), {"nonsense": 1})
    offered = str(error.value).split("one of: ")[1].split("; got")[0].split(", ")
    assert {"guidance_scale", "height"} <= set(offered)
    assert not {*RESERVED, "self"} & set(offered)
