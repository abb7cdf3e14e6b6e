"""Where, and with which versions, a trial was measured."""

from __future__ import annotations

import platform
import socket
import sys
from functools import cache
from importlib import metadata
from typing import Any

from autodiffusion_opt.study.problem import Problem

# Whatever may change a value, or the sequence of candidates.
LIBRARIES = ("autodiffusion-opt", "torch", "diffusers", "optuna", "nevergrad")


def versions() -> dict[str, str]:
    """Of Python and of the libraries, none of which is imported for that.

    Of one that is imported it is the version that it gives itself, with the build: ``2.15.0+cu132``.
    """
    return {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


def _version(library: str) -> str:
    module = sys.modules.get(library.replace("-", "_"))
    return str(getattr(module, "__version__", "")) or _installed_version(library)


@cache
def _installed_version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "unknown"


def provenance(problem: Problem) -> dict[str, Any]:
    """Host and versions of this process; device, its name and the dtype where a pipeline makes images."""
    machine: dict[str, str] = {}
    if problem.sampler is not None:
        from autodiffusion_opt.sampling.machine import machine_of

        machine = machine_of(problem.sampler.pipeline)
    return {"host": socket.gethostname(), **machine, "versions": versions()}
