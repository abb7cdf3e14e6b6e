"""Search the time steps and the layers of a pretrained diffusion model, training nothing.

import autodiffusion_opt as ado

ado.Study.load("studies/digits-4.toml").run()
pipeline = ado.apply(ado.load_pipeline("digits"), ado.Candidate.from_time_steps([926, 690, 424, 153]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.errors import UserError

if TYPE_CHECKING:
    from autodiffusion_opt.sampling.load import load_pipeline
    from autodiffusion_opt.sampling.apply import apply, install, remove
    from autodiffusion_opt.study.run import Study

__version__ = "0.1.0"
# Names that need torch or SQL are imported when they are first used.
_LATER = {
    "Study": "autodiffusion_opt.study.run",
    "apply": "autodiffusion_opt.sampling.apply",
    "install": "autodiffusion_opt.sampling.apply",
    "load_pipeline": "autodiffusion_opt.sampling.load",
    "remove": "autodiffusion_opt.sampling.apply",
}

__all__ = ["Candidate", "Step", "Study", "UserError", "apply", "install", "load_pipeline", "remove"]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
