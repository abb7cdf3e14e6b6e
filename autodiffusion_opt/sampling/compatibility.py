"""Which schedulers a pipeline can run, and which arguments its call takes: found out before the first trial.

diffusers lets any scheduler be put on any pipeline; some pairs raise in the middle of the call, others give images
that are silently wrong.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from autodiffusion_opt.config import combine
from autodiffusion_opt.errors import UserError, unknown_text
from autodiffusion_opt.sampling.schedule import accepted, is_log_linear

# Where pipelines keep the network that is called at each step.
DENOISERS = ("unet", "transformer")
# What a pipeline must do, beside giving its noise the right size, for a scheduler whose noise has not unit size (Euler,
# LMS, Heun: x = x_0 + σ ε).
SCALE_INPUT = "scale_model_input"
UNIT = "ddim, ddpm, dpmsolver++, unipc, deis ..."
INTERMEDIATE = "intermediate_timesteps"
# Arguments that are not the user's to give, and where what they say belongs.
RESERVED = {
    "num_inference_steps": "the candidate says how many steps there are",
    "timesteps": "the candidate has the times",
    INTERMEDIATE: "the candidate has the times",
    "sigmas": "the candidate has the times",
    "generator": "each image has its own, from the objective's seed",
    "latents": "each image has its own noise, from the objective's seed",
    "output_type": "images are tensors here",
    "return_dict": "images are tensors here",
    "batch_size": "set micro_batch in [pipeline]",
    "num_images_per_prompt": "one image has one condition",
    "prompt": 'set kind = "prompts" in [conditions]',
    "negative_prompt": "set it in [conditions]",
    "class_labels": 'set kind = "labels" in [conditions]',
}


def denoiser_of(pipeline: Any) -> Any:
    """The network that is called at each step. Raises UserError for a pipeline without one."""
    for name in DENOISERS:
        denoiser = getattr(pipeline, name, None)
        if denoiser is not None:
            return denoiser
    raise UserError(f"a pipeline must have one of {', '.join(DENOISERS)}; {type(pipeline).__name__} has neither")


def arguments_of_steps(parameters: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What a pipeline's call, of these parameters, is given for a number of steps.

    Sana Sprint's has a second time by default, which it takes with two steps alone.
    """
    one_second_time = INTERMEDIATE in parameters and steps != 2
    return {"num_inference_steps": steps} | ({INTERMEDIATE: None} if one_second_time else {})


def check_compatible(pipeline: Any) -> None:
    """Raises UserError for a scheduler that this pipeline's call cannot run, or runs wrongly."""
    check_pair(type(pipeline), pipeline.scheduler)


def check_pair(kind: Any, scheduler: Any) -> None:
    """Raises UserError for a scheduler that the call of a pipeline's class cannot run, or runs wrongly."""
    name, source = kind.__name__, _source(kind)
    if source is None:
        return
    _check_scaling(scheduler, name, source)
    _check_sigmas(scheduler, name, source)
    takes = inspect.signature(scheduler.step).parameters
    missing = sorted(_step_keywords(kind) - set(takes))
    if missing and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        raise UserError(
            f"{name} gives its scheduler's step {', '.join(missing)}, which {type(scheduler).__name__} does not "
            "take: use ddim or ddpm"
        )


def _check_scaling(scheduler: Any, name: str, source: str) -> None:
    if abs(float(getattr(scheduler, "init_noise_sigma", 1.0)) - 1) < 1e-3:
        return
    # Image to image starts from an image and the noise that add_noise puts on it, which has the scheduler's size.
    starts = "init_noise_sigma" in source or "self.scheduler.add_noise(" in source
    missing = ([] if starts else ["init_noise_sigma"]) + ([] if SCALE_INPUT in source else [SCALE_INPUT])
    if missing:
        raise UserError(
            f"{type(scheduler).__name__} needs a pipeline that applies {' and '.join(missing)}, and {name} does not: "
            f"its images would be wrong. Use a scheduler whose noise has unit size ({UNIT})"
        )


def _check_sigmas(scheduler: Any, name: str, source: str) -> None:
    """Flux computes sigmas of its own and hands them over, unless the scheduler says use_flow_sigmas."""
    if "sigmas = np.linspace" not in source or getattr(scheduler.config, "use_flow_sigmas", False):
        return
    if "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise UserError(
            f"{name} gives its scheduler sigmas, which {type(scheduler).__name__} does not take: use flow-euler, or "
            'unipc with scheduler_settings = {use_flow_sigmas = true, prediction_type = "flow_prediction"}'
        )


def check_single_step(pipeline: Any) -> None:
    """Raises UserError where a pipeline takes a single step's result for the predicted image, and there is none.

    PixArt-α does, for models distilled to one step (DMD); diffusers then fails in the middle of the call.
    """
    kind: Any = type(pipeline)
    scheduler, name = type(pipeline.scheduler), kind.__name__
    if "if num_inference_steps == 1:" not in (_source(kind) or ""):
        return
    if "pred_original_sample" not in inspect.getsource(scheduler.step):
        raise UserError(
            f"{name} makes a single step by the predicted image, which {scheduler.__name__} does not give: use a "
            "candidate with two steps or more, or ddim, ddpm or lcm"
        )


def check_replacement(before: Any, after: Any) -> None:
    """Raises UserError where a model made for one kind of noise would be given another by its new scheduler."""
    own, new = _noise(before), _noise(after)
    if own == "another scale" and type(before) is not type(after):
        raise UserError(
            f"{type(before).__name__} (consistency models, say) counts its times on a noise scale of its own: no other "
            "accepted scheduler can run this model"
        )
    if own != new:
        raise UserError(
            f"the model is made for {type(before).__name__} ({own}); {type(after).__name__} as configured is for "
            f"{new}: choose another scheduler, or set use_flow_sigmas in scheduler_settings"
        )


def _noise(scheduler: Any) -> str:
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas"):
        return "flow matching"
    if type(scheduler).__name__ in accepted() and is_log_linear(
        scheduler
    ):  # Euler's continuous times are EDM's with σ_data = 1
        return f"EDM with sigma_data={config.get('sigma_data', 1.0):g} and {config.prediction_type} prediction"
    return "variance preserving diffusion" if hasattr(scheduler, "alphas_cumprod") else "another scale"


def check_call(kind: Any, call: Mapping[str, Any]) -> None:
    """Whether ``[pipeline.call]`` fits the call of a pipeline's class.

    Raises:
        UserError: all arguments that the call does not take, or that are set elsewhere, at once.
    """
    allowed = [name for name in inspect.signature(kind.__call__).parameters if name != "self"]
    free = [name for name in allowed if name not in RESERVED and name != "kwargs"]
    errors = []
    for name in call:
        if name in RESERVED:
            errors.append(UserError(f"call: {name} cannot be set here: {RESERVED[name]}"))
        elif name not in allowed:
            errors.append(UserError(unknown_text(f"call: an argument of {kind.__name__}", name, free)))
    combine(errors)


def _classes(kind: type) -> Iterator[type]:
    """The pipeline's class and those above it, below diffusers' common base."""
    for base in kind.__mro__:
        if base.__name__ == "DiffusionPipeline":
            return
        yield base


@cache
def _source(kind: Any) -> str | None:
    """The text of the class that defines the call, with what it inherits; None where there is none to read."""
    try:
        return "\n".join(inspect.getsource(base) for base in _classes(kind))
    except (OSError, TypeError):
        return None


@cache
def _step_keywords(kind: Any) -> set[str]:
    """The keywords that the pipeline's call gives ``self.scheduler.step`` by name, whatever the scheduler."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(kind.__call__))))
    return {
        keyword.arg
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "self.scheduler.step"
        for keyword in call.keywords
        if keyword.arg is not None
    }
