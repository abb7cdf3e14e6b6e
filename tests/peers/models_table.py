"""Prints the table in docs/models.md: every pipeline that can be built here with small random weights.

    python tests/peers/models_table.py

Each runs a candidate of uneven times, lists its layers, leaves out each of them, is searched for three trials beyond
the usual schedules, and is as it was once its candidate is removed.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file

import peers.more_pipelines
import peers.video_pipelines  # noqa: F401  # they register theirs
from peers import pipelines
from peers.current_pipelines import CURRENT

import autodiffusion_opt as ado
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling.compatibility import denoiser_of
from autodiffusion_opt.sampling.conditions import call_parameters, class_count, load_conditions
from autodiffusion_opt.sampling.config import ConditionsConfig
from autodiffusion_opt.sampling.example_call import example_inputs, learn_layers
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.layers import Layer, install_bypass, list_layers
from autodiffusion_opt.trials.attributes import given_name, values_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "models.md"
PROMPTS = Path(tempfile.mkdtemp()) / "prompts.txt"
PROMPTS.write_text("\n".join(pipelines.PROMPTS), encoding="utf-8")

HEADER = ("pipeline", "denoiser", "times", "layers", "equal to zeroed branches", "trials", "as it was")
TIMES = (901, 640, 222)
TRIALS = 3
EPSILON = 1e-5
MAPS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
KEPT = ("conv_shortcut", "skip_linear", "downsample", "upsample")  # on the skip path


@dataclass(frozen=True)
class Row:
    """What holds of one pipeline: whether each column does, or why not."""

    name: str
    pipeline: str
    denoiser: str
    times: str
    layers: str
    equal: str
    trials: str
    removed: str

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.pipeline, self.denoiser, self.times, self.layers, self.equal, self.trials, self.removed)


def built(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline and the arguments of its call beside the prompt."""
    if name in CURRENT:
        pipeline, call = CURRENT[name]()
    else:
        pipeline, call = pipelines.BUILDERS[name](), pipelines.CALLS.get(name, {})
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, dict(call)


def names() -> list[str]:
    return [*pipelines.BUILDERS, *CURRENT]


def conditions_of(pipeline: Any) -> ConditionsConfig:
    takes = call_parameters(pipeline)
    if "prompt" in takes:
        return ConditionsConfig(kind="prompts", file=str(PROMPTS))
    return ConditionsConfig(kind="labels") if class_count(pipeline) else ConditionsConfig()


def said(check: Callable[[], str]) -> str:
    """What a check found; the error where it raised one."""
    try:
        return check()
    except Exception as error:
        return f"no: {str(error).splitlines()[0].replace('|', '/')}"


def row_of(name: str) -> Row:
    pipeline, call = built(name)
    denoiser = denoiser_of(pipeline)
    conditions = load_conditions(conditions_of(pipeline), pipeline)
    sampler = ImageSampler(pipeline, conditions, call, micro_batch=1, batch_size=1)
    candidate = ado.Candidate.from_time_steps(TIMES)

    def images() -> torch.Tensor:
        return next(iter(sampler.images(candidate, [0], seed=3)))

    def own() -> torch.Tensor:
        with sampler.calls() as sample:
            return sample([0], 3, 3)

    def times() -> str:
        pixels = images()
        other = next(iter(sampler.images(ado.Candidate.from_time_steps((880, 400, 100)), [0], seed=3)))
        return "yes" if pixels.float().std() > 0 and not torch.equal(pixels, other) else "no: the images are the same"

    def removed() -> str:
        before, hooks = own(), traces(denoiser)
        ado.apply(pipeline, with_layers(candidate, denoiser))
        own()
        ado.remove(pipeline)
        return "yes" if torch.equal(own(), before) and traces(denoiser) == hooks else "no"

    layers = said(lambda: listed(pipeline, call))
    equal = said(lambda: equal_to_zeroed(pipeline, call)) if layers[0].isdigit() else ""
    return Row(
        name,
        type(pipeline).__name__.removesuffix("Pipeline"),
        type(denoiser).__name__,
        said(times),
        layers,
        equal,
        said(lambda: searched(pipeline, call)),
        said(removed),
    )


def listed(pipeline: Any, call: dict[str, Any]) -> str:
    learn_layers(pipeline, call)
    layers = list_layers(denoiser_of(pipeline))
    removable = sum(layer.removable for layer in layers)
    return str(len(layers)) if removable == len(layers) else f"{len(layers)}, {removable} removable"


def equal_to_zeroed(pipeline: Any, call: dict[str, Any]) -> str:
    """Whether every layer left out gives what it gives with its linear maps and convolutions at zero."""
    denoiser, conditions = denoiser_of(pipeline), load_conditions(conditions_of(pipeline), pipeline)
    conditions.arguments(pipeline, [0])
    with conditions.around(pipeline):  # labels that the pipeline's call does not take
        inputs = example_inputs(pipeline, call)
    layers = [layer for layer in list_layers(denoiser) if layer.removable]
    differ = [layer.index for layer in layers if not is_equal_to_zeroed(denoiser, layer, inputs)]
    return "all" if not differ else f"not {', '.join(map(str, differ))}"


@torch.no_grad()
def is_equal_to_zeroed(denoiser: Any, layer: Layer, inputs: dict[str, Any]) -> bool:
    changed = copy.deepcopy(denoiser)
    for path, module in changed.get_submodule(layer.path).named_modules():
        if isinstance(module, MAPS) and not any(part in path for part in KEPT):
            for weight in module.parameters():
                weight.zero_()
    expected = output(changed, inputs)
    with install_bypass(denoiser, [{layer.index}], lambda: 0):
        bypassed = output(denoiser, inputs)
    return bool((bypassed - expected).abs().max() < EPSILON * max(1.0, float(expected.abs().max())))


def output(denoiser: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The first tensor that a denoiser returns."""
    result = denoiser(**inputs)
    while not isinstance(result, torch.Tensor):
        result = result[0]
    return result


def with_layers(candidate: ado.Candidate, denoiser: Any) -> ado.Candidate:
    """A candidate without the first removable layer at its first step; as it is where there is none."""
    try:
        gone = next(layer.index for layer in list_layers(denoiser) if layer.removable)
    except (UserError, StopIteration):
        return candidate
    first, *others = candidate.steps
    return dataclasses.replace(candidate, steps=(dataclasses.replace(first, removed=(gone,)), *others))


def traces(denoiser: Any) -> list[tuple[str, list[str]]]:
    return [(path, sorted(vars(module))) for path, module in denoiser.named_modules()]


def searched(pipeline: Any, call: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        study = ado.Study(
            "models",
            pipeline={"model": pipeline, "micro_batch": 1, "batch_size": 1, "call": call},
            space={"kind": "time-steps", "steps": 3},
            objective=ado.ImageMetric(
                lambda images: float(images.float().std()), 1, "spread", conditions=conditions_of(pipeline)
            ),
            optimizer="random",
            trials=TRIALS,
            storage=f"sqlite:///{folder}/models.db",
        )
        study.run(len(study.problem.baselines) + TRIALS)
        done = [trial for trial in study.trials() if values_of(trial) and given_name(trial) is None]
        return "yes" if len(done) >= TRIALS else f"no: {len(done)} of {TRIALS} have a value"


def markdown(rows: list[Row]) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *(row.cells for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # diffusers' own, and that a pipeline has no own schedule to compare with
    logging.disable(logging.WARNING)
    print(markdown([]))
    for name in sys.argv[1:] or names():
        print(markdown([row_of(name)]).splitlines()[-1], flush=True)
