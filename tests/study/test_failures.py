"""What evaluations that failed in a row have in common."""

from __future__ import annotations

import pytest

from autodiffusion_opt.study.failures import in_common


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        (["out of memory"] * 3, "3 candidates in a row failed, all with: out of memory. Put"),
        (
            ["f failed: E: 1", "f failed: E: 2"],
            "2 candidates in a row failed, all with f failed: E; the last: f failed: E: 2. P",
        ),
        (
            ["first", "second", "first"],
            "3 candidates in a row failed; their reasons: first; second. Put it right and run",
        ),
    ],
)
def test_the_sentence(reasons: list[str], said: str) -> None:
    assert in_common(reasons).startswith(said)
