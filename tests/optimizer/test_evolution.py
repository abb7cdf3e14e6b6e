"""What evolution and random search propose, over plain lists of observations: no SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from marks import slow_but

import autodiffusion_opt as ado
from autodiffusion_opt.candidate import Candidate
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.optimizer.base import TRIES, CandidateSampler, Proposal
from autodiffusion_opt.optimizer.evolution import EvolutionConfig
from autodiffusion_opt.space import ModelInfo
from autodiffusion_opt.study.config import build_optimizer, build_space
from autodiffusion_opt.trials.history import Observation, Observations

INFO = ModelInfo(1000, layers=10, removable=tuple(range(10)), ranking=(tuple(range(10)),) * 3)
SMALL = {"population": 10, "parents": 3, "mutations": 5, "crossovers": 3}
Value = Callable[[Candidate], float]


def space_of(kind: str = "time-steps", info: ModelInfo = INFO, **keys: Any) -> Any:
    defaults: dict[str, Any] = {"steps": 4} if kind == "time-steps" else {"n_max": 40, "steps_min": 2}
    return build_space({"kind": kind} | defaults | keys, "here").space(info)


def sampler_of(space: Any, kind: str = "evolution", seed: int = 0, **keys: Any) -> CandidateSampler:
    defaults = SMALL if kind == "evolution" else {}
    sampler = build_optimizer({"kind": kind} | defaults | keys, "here").sampler(space, seed)
    assert isinstance(sampler, CandidateSampler)
    return sampler


def observed(position: int, candidate: Candidate, value: float | None) -> Observation:
    return Observation(position, candidate, None if value is None else (value,))


def propose(sampler: CandidateSampler, past: Sequence[Observation], position: int, seed: int | None = None) -> Proposal:
    rng = np.random.default_rng([sampler.seed, position] if seed is None else seed)
    return sampler.propose(Observations(past).before(position), rng)


def search(sampler: CandidateSampler, value: Value, count: int) -> tuple[list[Observation], list[Proposal]]:
    past: list[Observation] = []
    proposals = []
    for position in range(count):
        proposals.append(propose(sampler, past, position))
        past.append(observed(position, proposals[-1].candidate, value(proposals[-1].candidate)))
    return past, proposals


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
    past, _ = search(sampler_of(problem, kind), far, 80)
    assert len({o.candidate for o in past}) == 80
    for observation in past:
        problem.check(observation.candidate)


@every_way
def test_same_seed_and_history_give_the_same_proposal(kind: str, space: str, keys: dict[str, Any]) -> None:
    problem = space_of(space, **keys)
    past, proposals = search(sampler_of(problem, kind), far, 45)
    resumed = sampler_of(problem, kind)
    assert [propose(resumed, past[:i], i) for i in (3, 17, 29, 44)] == [proposals[i] for i in (3, 17, 29, 44)]
    reseeded = sampler_of(problem, kind, seed=1)
    assert propose(reseeded, past[:44], 44) != proposals[44]


def test_proposals_of_a_generation_do_not_depend_on_values_within_it() -> None:
    past, proposals = search(sampler_of(space_of()), far, 20)
    altered = [*past[:10], *(observed(o.position, o.candidate, None) for o in past[10:19])]
    assert propose(sampler_of(space_of()), altered, 19) == proposals[19]


def test_the_first_population_is_the_uniform_candidate_half_random_and_its_mutants() -> None:
    space = space_of()
    _, proposals = search(sampler_of(space), far, 10)
    assert [p.origin for p in proposals] == ["uniform"] + ["random"] * 5 + ["mutation"] * 4
    uniform = space.baselines()["leading"]
    assert proposals[0].candidate == uniform
    for proposal in proposals[6:]:
        assert set(proposal.candidate.times) & set(uniform.times)


def test_a_generation_is_mutations_then_crossovers_then_random() -> None:
    _, proposals = search(sampler_of(space_of()), far, 20)
    assert [p.origin for p in proposals[10:]] == ["mutation"] * 5 + ["crossover"] * 3 + ["random"] * 2


class Recorder:
    """A space that notes whose children it is asked for."""

    def __init__(self, space: Any) -> None:
        self.space = space
        self.parents: set[Candidate] = set()
        for name in (
            "fully_parametric",
            "distributions",
            "decode",
            "encode",
            "check",
            "nearest",
            "baselines",
            "random",
        ):
            setattr(self, name, getattr(space, name))

    def with_layer_share(self, share: float) -> Recorder:
        return self

    def mutate(self, candidate: Candidate, rng: np.random.Generator, probability: float) -> Candidate:
        self.parents.add(candidate)
        return self.space.mutate(candidate, rng, probability)

    def crossover(self, first: Candidate, second: Candidate, rng: np.random.Generator) -> Candidate:
        self.parents |= {first, second}
        assert first != second
        return self.space.crossover(first, second, rng)


def test_parents_are_the_best_of_all_earlier_generations() -> None:
    """The three best are in generations 0, 1 and 2; better ones in the running generation 3 do not count."""
    space, rng = space_of(), np.random.default_rng(5)
    values: dict[int, float | None] = {4: 1.0, 13: 2.0, 27: 3.0, 31: 0.0, 5: float("nan"), 6: None, 7: float("inf")}
    past = [observed(position, space.random(rng), values.get(position, 50.0 + position)) for position in range(35)]
    recorder = Recorder(space)
    sampler = sampler_of(recorder)
    for seed in range(40):
        propose(sampler, past, 34, seed)
        propose(sampler, past, 37, seed)
    assert recorder.parents == {past[position].candidate for position in (4, 13, 27)}


@pytest.mark.parametrize("steps", [3, 4, 10])
def test_children_never_lose_steps(steps: int) -> None:
    """A dozen times only, so that parents share most of theirs."""
    space = space_of(info=ModelInfo(14, highest=13.0), steps=steps)
    past, proposals = search(sampler_of(space), lambda candidate: sum(candidate.times), 60)
    assert {len(o.candidate.steps) for o in past} == {steps}
    assert "crossover" in {p.origin for p in proposals}


def test_without_values_children_are_random() -> None:
    space, rng = space_of(), np.random.default_rng(0)
    past = [observed(position, space.random(rng), None) for position in range(10)]
    assert propose(sampler_of(space), past, 10).origin == "random"


def test_an_exhausted_space_still_gives_a_proposal() -> None:
    space = space_of(info=ModelInfo(4, highest=3.0), steps=3)
    for kind in ("evolution", "random"):
        past, _ = search(sampler_of(space, kind), far, 12)
        assert len({o.candidate for o in past}) == 4


def test_evolution_finds_what_random_search_does_not() -> None:
    bests = {
        kind: [min(o.loss or 0.0 for o in search(sampler_of(space_of(), kind, seed), far, 150)[0]) for seed in range(4)]
        for kind in ("evolution", "random")
    }
    assert np.mean(bests["evolution"]) < 0.7 * np.mean(bests["random"])


@pytest.mark.parametrize("layers", ["any", "ranked"])
def test_stage_one_is_times_alone_and_stage_two_grows(layers: str) -> None:
    past, proposals = search(
        sampler_of(space_of("joint", layers=layers), stage_one=2, growth=2), lambda candidate: -len(candidate.steps), 50
    )
    stages = [p.stage for p in proposals]
    first = stages.index("joint 50%")
    assert first in (10, 20)
    assert stages == ["times"] * first + ["joint 50%"] * 10 + ["joint 100%"] * (40 - first)
    removed = [max(len(layers) for layers in o.candidate.removed) for o in past]
    assert max(removed[:first]) == 0
    assert 0 < max(removed[first : first + 10]) <= 2  # half of 5, rounded down
    assert max(removed[first + 10 :]) > 2
    assert max(len(o.candidate.steps) for o in past[:first]) == 4
    assert max(len(o.candidate.steps) for o in past) > 4


def test_stage_one_lasts_while_the_best_still_changes() -> None:
    """Each later candidate is better: the stage ends at its greatest length."""
    sampler, past = sampler_of(space_of("joint"), stage_one=3), []
    for position in range(40):
        proposal = propose(sampler, past, position)
        assert proposal.stage == ("times" if position < 30 else "joint 50%")
        past.append(observed(position, proposal.candidate, -float(position)))


def test_stage_one_ends_when_a_generation_brings_no_better_best() -> None:
    sampler, past = sampler_of(space_of("joint"), stage_one=5), []
    for position in range(30):
        proposal = propose(sampler, past, position)
        assert proposal.stage == ("times" if position < 20 else "joint 50%")
        past.append(observed(position, proposal.candidate, float(position)))


def test_no_stage_one_where_none_is_wanted_or_no_layer_may_go() -> None:
    assert propose(sampler_of(space_of("joint"), stage_one=0, growth=4), [], 0).stage == "joint 25%"
    assert propose(sampler_of(space_of("joint", max_removed_share=0.0)), [], 0).stage is None
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
        build_optimizer({"kind": "evolution"} | keys, "here")


def test_the_defaults_are_those_of_the_authors_scripts() -> None:
    """Li et al., 2023, section 4.1 and the published search script: P 50, k 10, 25 mutations, 15 crossovers, p 0.25."""
    defaults = EvolutionConfig().model_dump()
    assert defaults == {
        "kind": "evolution",
        "start_from": (),
        "population": 50,
        "parents": 10,
        "mutations": 25,
        "crossovers": 15,
        "probability": 0.25,
        "first_probability": 0.1,
        "small_moves": 0.0,
        "spread": 0.4,
        "stage_one": 3,
        "growth": 2,
    }


def test_random_search_exhausts_a_small_space_before_it_repeats() -> None:
    """Two of four times: six candidates, all of them among the first six proposals."""
    space = space_of(info=ModelInfo(4, highest=3.0), steps=2)
    past, _ = search(sampler_of(space, "random"), far, 6)
    assert len({o.candidate for o in past}) == 6
    assert TRIES >= 100  # the chance that the last candidate is missed that often is (5/6)^100, 1e-8


def test_a_mutation_of_the_first_population_changes_fewer_steps_than_later_mutations() -> None:
    sampler = sampler_of(space_of(steps=8), first_probability=0.1, probability=0.9)
    uniform = sampler.space.baselines()["leading"]
    changed = [len(set(propose(sampler, [], slot).candidate.times) - set(uniform.times)) for slot in range(6, 10)]
    past = [observed(position, uniform, 1.0) for position in range(10)]
    later = [len(set(propose(sampler, past, slot).candidate.times) - set(uniform.times)) for slot in range(10, 15)]
    assert np.mean(changed) < 3 < np.mean(later)


def study_of(space: dict[str, Any], kind: str, url: str) -> ado.Study:
    objective = ado.CandidateMetric(far, identity="far")
    optimizer = {"kind": kind} | (SMALL if kind == "evolution" else {})
    return ado.Study(
        "s", space=space, objective=objective, optimizer=optimizer, trials=30, storage=url, model_info=INFO
    )


@pytest.mark.parametrize("kind", slow_but(["evolution", "random"], "evolution"))
@pytest.mark.parametrize("space", [{"kind": "time-steps", "steps": 4}, {"kind": "joint", "n_max": 40, "steps_min": 2}])
def test_what_is_measured_is_what_was_proposed_for_the_position(space: dict[str, Any], kind: str, url: str) -> None:
    """Also where the parameters do not tell which layers: those of the proposal are removed, not others."""
    study = study_of(space, kind, url)
    study.run(progress=False)
    past: list[Observation] = []
    for position, trial in enumerate(study.trials()):
        candidate = Candidate.from_json(trial.user_attrs["candidate"])
        if "baseline" not in trial.user_attrs:
            sampler = sampler_of(study.problem.space, kind)
            assert propose(sampler, past, position).candidate == candidate
        past.append(observed(position, candidate, trial.values[0]))


@pytest.mark.slow
def test_the_stage_and_the_origin_are_kept_with_the_trial(url: str) -> None:
    study = study_of({"kind": "joint", "n_max": 40, "steps_min": 2}, "evolution", url)
    study.run(progress=False)
    later = [trial.user_attrs for trial in study.trials() if "baseline" not in trial.user_attrs]
    assert {attributes["stage"] for attributes in later} <= {"times", "joint 50%", "joint 100%"}
    assert {"mutation", "crossover"} <= {attributes["origin"] for attributes in later}
