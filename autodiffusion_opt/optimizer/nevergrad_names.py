"""Which of Nevergrad's names a study may use, and why not the others.

Every name of version 1.0.12 was run: 60 asks in four dimensions, two at a time, with points told that were not asked
for; once more with the same seed, and with another. What failed, or did not repeat itself, is here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from autodiffusion_opt.errors import nearest

PREFIX = "nevergrad:"
RECOMMENDED = (
    "CMA",
    "DE",
    "DiagonalCMA",
    "DiscreteOnePlusOne",
    "NgIohTuned",
    "OnePlusOne",
    "PSO",
    "PortfolioDiscreteOnePlusOne",
    "ScrHammersleySearch",
    "TBPSA",
    "TwoPointsDE",
)


@dataclass(frozen=True)
class Refusal:
    """Names that are refused.

    Attributes:
        pattern: is found in such a name.
        reason: completes "NAME cannot be used: it ...".
        with_old_numpy: whether they work where NumPy turns an array of one number into a float.
    """

    pattern: str
    reason: str
    with_old_numpy: bool = False


# The first that fits is told.
REFUSALS = (
    Refusal(
        r"Log[nN]ormal|LN$|LN[A-Z]|Ln$|MultiDS|NgDS3",
        "draws random numbers that no seed determines, so a study could not be resumed",
    ),
    Refusal(r"EDA|EMNA", "takes no points that it did not ask for, and a study's baselines are such points"),
    Refusal(r"AXP|BayesOptim|PCABO|^FCMA", "needs a package that is not installed with Nevergrad"),
    Refusal(r"^BO", "needs seconds to minutes for a point, or fails where a point comes twice: use optuna:gp"),
    Refusal(
        r"AX$|BFGS|BOBYQA|Carola|Powell|SQP|Cobyla|Fmin2|^DS|DSproba|NLOPT|NelderMead|Pymoo|SMAC3|pysot|RW$"
        r"|ParaPortfolio|ChainDE$|MemeticDE|QNDE",
        "runs another package's minimiser in a thread that waits for the next value: it cannot serve several workers, "
        "and keeps a process from exiting",
    ),
    Refusal(r"SPSA|Doerr", "takes one point at a time only, and cannot serve several workers"),
    Refusal(r"^Zero$|AnisotropicAdaptiveDiscreteOnePlusOne", "proposes the same one or two points for ever"),
    Refusal(
        r"MetaModel|^NGOpt(4|8|10|15|16|36|39|Single16)?$|MetaNGOpt10|^NgIoh[23]?$|NgLglr|NgRS|^Wiz$|^BAR4$|CMandAS2",
        f"fails with NumPy {np.__version__} (a TypeError in nevergrad/optimization/metamodel.py of version 1.0.12): "
        "use NgIohTuned, which chooses an optimizer as NGOpt does, or CMA",
        with_old_numpy=True,
    ),
)


def check_not_refused(name: str) -> None:
    """Raises ValueError, with the reason, for a name that cannot be used; knows them without importing Nevergrad."""
    refusal = next((refusal for refusal in REFUSALS if re.search(refusal.pattern, name)), None)
    if refusal is not None and not (refusal.with_old_numpy and _floats_of_arrays()):
        raise ValueError(f"{PREFIX}{name} cannot be used: it {refusal.reason}")


def unknown_name(name: str, registered: list[str]) -> str:
    """The sentence for a name that Nevergrad does not have."""
    return (
        f"kind must be {PREFIX} and the name of an optimizer of Nevergrad's, such as {', '.join(RECOMMENDED)}; "
        f"got {PREFIX + name!r}.{nearest(name, registered)}"
    )


def _floats_of_arrays() -> bool:
    """Whether ``float(array of one number)`` is a number: up to NumPy 2.3."""
    return tuple(map(int, np.__version__.split(".")[:2])) < (2, 4)
