"""Names that the command line knows: of the catalogue, candidates and optimizers, with a line on each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CANDIDATES, OPTIMIZERS = "candidates", "optimizers"
SECTIONS = ("spaces", "objectives", "studies", CANDIDATES, OPTIMIZERS)
OTHERS = "any other name in Nevergrad's registry; one that cannot be used is refused, with the reason"


@dataclass(frozen=True)
class Listed:
    """A line of ``ls``."""

    section: str
    name: str
    description: str


def listed(section: str | None, everything: bool = False) -> Iterator[Listed]:
    """The lines of a section, or of all; of optimizers only those that are recommended, unless ``everything``."""
    from autodiffusion_opt.catalogue import SECTIONS, candidates, entries

    sections = [known for known in SECTIONS if section in (None, known)]
    yield from (Listed(each.section, each.name, each.description) for each in entries(sections))
    if section in (None, CANDIDATES):
        yield from (Listed(CANDIDATES, name, comment) for name, comment in candidates().items())
    if section in (None, OPTIMIZERS):
        yield from (Listed(OPTIMIZERS, name, line) for name, line in _optimizers(everything).items())


def _optimizers(everything: bool) -> dict[str, str]:
    from autodiffusion_opt.recommended import RECOMMENDED

    if not everything:
        return dict(RECOMMENDED)
    from autodiffusion_opt.optimizer import OPTIMIZERS as KINDS
    from autodiffusion_opt.optimizer.nevergrad_names import PREFIX
    from autodiffusion_opt.optimizer.nevergrad_names import RECOMMENDED as NEVERGRAD

    names = [*KINDS, *(PREFIX + name for name in NEVERGRAD)]
    more = {f"{PREFIX}NAME": OTHERS}
    return {name: RECOMMENDED.get(name, "") for name in dict.fromkeys([*RECOMMENDED, *names])} | more
