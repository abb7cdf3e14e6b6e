"""Where a pattern search was when it proposed a candidate: all that it keeps in SQL beside the candidate."""

from __future__ import annotations

import re
from dataclasses import dataclass

BEGINNING, RESTRUCTURED = "beginning", "beginning of other steps"
_TEXT = re.compile(r"descent (\d+), (?:(beginning)( of other steps)?|step ([0-9.e+-]+)(?:, layers of (\d+))?)")


@dataclass(frozen=True)
class Stage:
    """A stage of a search; its text is the trial's stage in SQL.

    Attributes:
        descent: counted from 1.
        step: of the sweep; None for a candidate from which a descent may go.
        base: of a candidate with other layers: the position of the centre that it is a neighbour of.
        is_restructured: of a candidate from which a descent may go: whether it has another number of steps.
    """

    descent: int
    step: float | None
    base: int | None = None
    is_restructured: bool = False

    def __str__(self) -> str:
        if self.step is None:
            return f"descent {self.descent}, {RESTRUCTURED if self.is_restructured else BEGINNING}"
        layers = "" if self.base is None else f", layers of {self.base}"
        return f"descent {self.descent}, step {self.step:g}{layers}"

    @classmethod
    def parsed(cls, text: str | None) -> Stage | None:
        """The stage of a text; None for what another optimizer wrote."""
        match = _TEXT.fullmatch(text or "")
        if match is None:
            return None
        descent, _, is_restructured, step, base = match.groups()
        return cls(
            int(descent),
            None if step is None else float(step),
            None if base is None else int(base),
            is_restructured is not None,
        )
