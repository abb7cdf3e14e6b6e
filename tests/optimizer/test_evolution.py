"""What evolution and random search propose, over plain lists of what was seen: no SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from optuna.samplers import BaseSampler, RandomSampler

from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.config import build_kind
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer import KINDS
from autodiffusion_opt.optimizer.base import CandidateSampler, OptimizerConfig, Proposal
from autodiffusion_opt.space import KINDS as SPACES
from autodiffusion_opt.space import ModelInfo, Space
from autodiffusion_opt.trials.history import Observation, best_of

FACTS = ModelInfo(1000, layers=10, removable=tuple(range(10)), ranking=(tuple(range(10)),) * 3)
SMALL = {"population": 10, "parents": 3, "mutations": 5, "crossovers": 3}
Value = Callable[[Candidate], float]


def space_of(kind: str = "time-steps", info: ModelInfo = FACTS, **keys: Any) -> Space:
    defaults: dict[str, Any] = {"steps": 4} if kind == "time-steps" else {"n_max": 40, "steps_min": 2}
    table = {"kind": kind, "pipeline": {"model": "digits"}} | defaults | keys
    return build_kind(SPACES, "space", table, "here").bind(info)


def sampler_of(space: Space, kind: str = "evolution", seed: int = 0, **keys: Any) -> CandidateSampler:
    defaults = SMALL if kind == "evolution" else {}
    sampler = build_kind(KINDS, "optimizer", {"kind": kind} | defaults | keys, "here").sampler(space, seed)
    assert isinstance(sampler, CandidateSampler)
    return sampler


def propose(sampler: CandidateSampler, seen: Sequence[Observation], position: int) -> Proposal:
    return sampler.propose(seen, position, np.random.default_rng([sampler.seed, position]))


def search(sampler: CandidateSampler, value: Value, count: int) -> tuple[list[Observation], list[Proposal]]:
    seen: list[Observation] = []
    proposals = []
    for position in range(count):
        proposals.append(propose(sampler, seen, position))
        seen.append(Observation(position, proposals[-1].candidate, value(proposals[-1].candidate)))
    return seen, proposals


def far(candidate: Candidate) -> float:
    """A distance from a target, lower for fewer layers removed."""
    times = np.array(candidate.times)
    target = np.linspace(930, 30, len(times)) ** 2 / 930
    return float(np.abs(times - target).mean()) + sum(len(layers) for layers in candidate.removed)


WAYS = [("evolution", "time-steps", {}), ("random", "time-steps", {})] + [
    (kind, "joint", {"layers": layers}) for kind in ("evolution", "random") for layers in ("any", "ranked")
]
every_way = pytest.mark.parametrize(("kind", "space", "keys"), WAYS)


@every_way
def test_none_is_proposed_twice_and_all_are_of_the_space(kind: str, space: str, keys: dict[str, Any]) -> None:
    problem = space_of(space, **keys)
    seen, _ = search(sampler_of(problem, kind), far, 80)
    assert len({one.candidate for one in seen}) == 80
    for one in seen:
        problem.check(one.candidate)


@every_way
def test_same_seed_and_history_give_the_same_proposal(kind: str, space: str, keys: dict[str, Any]) -> None:
    problem = space_of(space, **keys)
    seen, proposals = search(sampler_of(problem, kind), far, 45)
    resumed = sampler_of(problem, kind)
    assert [propose(resumed, seen[:i], i) for i in (3, 17, 29, 44)] == [proposals[i] for i in (3, 17, 29, 44)]
    other = sampler_of(problem, kind, seed=1)
    assert propose(other, seen[:44], 44) != proposals[44]


def test_proposals_of_a_generation_do_not_depend_on_values_within_it() -> None:
    seen, proposals = search(sampler_of(space_of()), far, 20)
    altered = [*seen[:10], *(Observation(one.position, one.candidate, None) for one in seen[10:19])]
    assert propose(sampler_of(space_of()), altered, 19) == proposals[19]


def test_the_first_population_is_the_uniform_candidate_half_random_and_its_mutants() -> None:
    space = space_of()
    _, proposals = search(sampler_of(space), far, 10)
    assert [one.origin for one in proposals] == ["uniform"] + ["random"] * 5 + ["mutation"] * 4
    uniform = space.baselines()["leading"]
    assert proposals[0].candidate == uniform
    for one in proposals[6:]:
        assert set(one.candidate.times) & set(uniform.times)


def test_a_generation_is_mutations_then_crossovers_then_random() -> None:
    _, proposals = search(sampler_of(space_of()), far, 20)
    assert [one.origin for one in proposals[10:]] == ["mutation"] * 5 + ["crossover"] * 3 + ["random"] * 2


class Recorder:
    """A space that notes whose children it is asked for."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.parents: set[Candidate] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.space, name)

    def with_layer_share(self, share: float) -> Recorder:
        return self

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        self.parents.add(candidate)
        return self.space.mutate(candidate, rng, probability)

    def crossover(self, one: Candidate, other: Candidate, rng: np.random.Generator) -> Candidate:
        self.parents |= {one, other}
        return self.space.crossover(one, other, rng)


def test_parents_are_the_best_of_all_earlier_generations() -> None:
    """The three best are in generations 0, 1 and 2; better ones in the running generation 3 do not count."""
    space, rng = space_of(), np.random.default_rng(5)
    values: dict[int, float | None] = {4: 1.0, 13: 2.0, 27: 3.0, 31: 0.0, 5: float("nan"), 6: None, 7: float("inf")}
    seen = [Observation(position, space.random(rng), values.get(position, 50.0 + position)) for position in range(35)]
    recorder = Recorder(space)
    sampler = sampler_of(recorder)  # type: ignore[arg-type]  # a space in all that matters
    for seed in range(40):
        sampler.propose(seen, 34, np.random.default_rng(seed))
        sampler.propose(seen, 37, np.random.default_rng(seed))
    assert recorder.parents == {seen[position].candidate for position in (4, 13, 27)}


def test_one_candidate_seen_twice_is_one_parent() -> None:
    one, other = Candidate.from_time_steps([3, 2]), Candidate.from_time_steps([4, 2])
    seen = [Observation(0, one, 1.0), Observation(1, one, 1.0), Observation(2, other, 2.0)]
    assert [found.position for found in best_of(seen, 2)] == [0, 2]


@pytest.mark.parametrize("steps", [3, 4, 10])
def test_children_never_lose_steps(steps: int) -> None:
    """A dozen times only, so that parents share most of theirs."""
    space = space_of(info=ModelInfo(14, highest=13.0), steps=steps)
    seen, proposals = search(sampler_of(space), lambda one: sum(one.times), 60)
    assert {len(one.candidate.steps) for one in seen} == {steps}
    assert "crossover" in {one.origin for one in proposals}


def test_without_values_children_are_random() -> None:
    space, rng = space_of(), np.random.default_rng(0)
    seen = [Observation(position, space.random(rng), None) for position in range(10)]
    assert propose(sampler_of(space), seen, 10).origin == "random"


def test_an_exhausted_space_still_gives_a_proposal() -> None:
    space = space_of(info=ModelInfo(4, highest=3.0), steps=3)
    for kind in ("evolution", "random"):
        seen, _ = search(sampler_of(space, kind), far, 12)
        assert len({one.candidate for one in seen}) == 4


def test_evolution_finds_what_random_search_does_not() -> None:
    bests = {
        kind: [
            min(one.value or 0.0 for one in search(sampler_of(space_of(), kind, seed), far, 150)[0])
            for seed in range(4)
        ]
        for kind in ("evolution", "random")
    }
    assert np.mean(bests["evolution"]) < 0.7 * np.mean(bests["random"])


@pytest.mark.parametrize("layers", ["any", "ranked"])
def test_stage_one_is_times_alone_and_stage_two_grows(layers: str) -> None:
    seen, proposals = search(
        sampler_of(space_of("joint", layers=layers), stage_one=2, growth=2), lambda one: -len(one.steps), 50
    )
    stages = [one.stage for one in proposals]
    first = stages.index("joint 50%")
    assert first in (10, 20)
    assert stages == ["times"] * first + ["joint 50%"] * 10 + ["joint 100%"] * (40 - first)
    removed = [max(len(layers) for layers in one.candidate.removed) for one in seen]
    assert max(removed[:first]) == 0
    assert 0 < max(removed[first : first + 10]) <= 2  # half of 5, rounded down
    assert max(removed[first + 10 :]) > 2
    assert max(len(one.candidate.steps) for one in seen[:first]) == 4
    assert max(len(one.candidate.steps) for one in seen) > 4


def test_stage_one_lasts_while_the_best_still_changes() -> None:
    """Each later candidate is better: the stage ends at its greatest length."""
    sampler, seen = sampler_of(space_of("joint"), stage_one=3), []
    for position in range(40):
        proposal = propose(sampler, seen, position)
        assert proposal.stage == ("times" if position < 30 else "joint 50%")
        seen.append(Observation(position, proposal.candidate, -float(position)))


def test_stage_one_ends_when_a_generation_brings_no_better_best() -> None:
    sampler, seen = sampler_of(space_of("joint"), stage_one=5), []
    for position in range(30):
        proposal = propose(sampler, seen, position)
        assert proposal.stage == ("times" if position < 20 else "joint 50%")
        seen.append(Observation(position, proposal.candidate, float(position)))


def test_no_stage_one_where_none_is_wanted_or_no_layer_may_go() -> None:
    assert propose(sampler_of(space_of("joint"), stage_one=0, growth=4), [], 0).stage == "joint 25%"
    assert propose(sampler_of(space_of("joint", max_removed=0.0)), [], 0).stage is None
    assert propose(sampler_of(space_of()), [], 0).stage is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"population": 10, "mutations": 8, "crossovers": 3}, "must be at most population, 10; got 8 \\+ 3"),
        ({"probability": 0}, "probability"),
        ({"mutation": 3}, "Did you mean 'mutations'"),
        ({"growth": 0}, "growth"),
    ],
)
def test_wrong_settings_name_their_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_kind(KINDS, "optimizer", {"kind": "evolution"} | keys, "here")


def test_an_optimizer_of_parameters_is_refused_where_these_do_not_say_all() -> None:
    class Parameters(OptimizerConfig):
        """An optimizer that knows parameters only."""

        kind: str = "tpe"

        def sampler(self, space: Any, seed: int) -> BaseSampler:
            return RandomSampler(seed)

    with pytest.raises(UserError, match=r'optimizer tpe .*layers = "ranked".*evolution, random'):
        Parameters().sampler_of(space_of("joint"), 0)
    for space in (space_of("joint", layers="ranked"), space_of()):
        assert isinstance(Parameters().sampler_of(space, 0), RandomSampler)
    for kind in KINDS.values():
        assert isinstance(kind().sampler_of(space_of("joint"), 0), CandidateSampler)
