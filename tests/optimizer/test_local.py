"""What pattern search proposes, over plain lists of observations: no SQL."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

import autodiffusion_opt as ado
from autodiffusion_opt.candidate import Candidate, Step
from autodiffusion_opt.objective import Score
from autodiffusion_opt.objective.goals import Bound
from autodiffusion_opt.optimizer.base import Proposal
from autodiffusion_opt.optimizer.local import LocalSearch, WorseThanBest
from autodiffusion_opt.optimizer.stage import Stage
from autodiffusion_opt.study.config import build_optimizer, build_space
from autodiffusion_opt.trials.attributes import CANDIDATE, STAGE, given_name
from autodiffusion_opt.trials.history import Observation, Observations

SIGMAS = tuple(np.geomspace(0.01, 80, 1000).tolist())
INFO = ado.ModelInfo(1000, sigmas=SIGMAS, layers=10, removable=tuple(range(10)), ranking=(tuple(range(10)),) * 3)
SPACES: dict[str, dict[str, Any]] = {
    "times": {"kind": "time-steps", "steps": 4},
    "continuous": {"kind": "time-steps", "steps": 4, "times": "continuous"},
    "guidance": {"kind": "time-steps", "steps": 3, "guidance_scale": [1.0, 9.0], "end_time": [0.0, 40.0]},
    "joint any": {"kind": "joint", "n_max": 30, "steps_min": 2, "steps_max": 5},
    "joint ranked": {"kind": "joint", "n_max": 30, "steps_min": 2, "steps_max": 5, "layers": "ranked"},
}
every_space = pytest.mark.parametrize("name", SPACES)
Value = Callable[[Candidate], float | None]


def search_of(name: str, seed: int = 0, **keys: Any) -> LocalSearch:
    info = dataclasses.replace(INFO, continuous=True)
    space: Any = build_space(SPACES[name], "here").space(info)
    sampler = build_optimizer({"kind": "local"} | keys, "here").sampler(space, seed)
    assert isinstance(sampler, LocalSearch)
    return sampler


def valley(candidate: Candidate) -> float:
    """A distance in log-SNR from times 600, 300, ...; and of the guidance scale from 3."""
    target = np.linspace(600, 60, len(candidate.times))
    apart = INFO.log_snr(candidate.times) - INFO.log_snr(target.tolist())
    return float((apart**2).sum()) + (0 if candidate.guidance_scale is None else (candidate.guidance_scale - 3) ** 2)


def propose(search: LocalSearch, past: list[Observation], position: int) -> Proposal:
    return search.propose(Observations(past).before(position), np.random.default_rng([search.seed, position]))


def run(search: LocalSearch, value: Value, count: int, past: list[Observation] | None = None) -> list[Observation]:
    """Positions one after another; None of ``value`` fails."""
    seen = list(past or [])
    while len(seen) < count:
        proposal = propose(search, seen, len(seen))
        loss = value(proposal.candidate)
        losses = None if loss is None else (loss,)
        seen.append(Observation(len(seen), proposal.candidate, losses, stage=proposal.stage))
    return seen


@every_space
def test_candidates_are_in_the_space_and_none_is_proposed_twice(name: str) -> None:
    search = search_of(name)
    past = run(search, valley, 120)
    for observation in past:
        search.space.check(observation.candidate)
    assert len({observation.candidate for observation in past}) == 120


@pytest.mark.parametrize(
    ("engine", "settings"),
    [("mag-cache", {}), ("taylorseer-cache", {"interval": 9, "warm_up": [1, 8], "order": 0})],
    ids=["mask", "warm-up"],
)
def test_one_descent_exchanges_steps_for_more_of_a_cache_where_the_cost_is_bounded(
    engine: str, settings: dict[str, Any]
) -> None:
    table = {"kind": "engine", "engine": engine, "steps": [4, 8], "spacing": "trailing", "settings": settings}
    space: Any = build_space(table, "here").space(INFO)
    search = build_optimizer({"kind": "local"}, "here").sampler(space, 0)
    assert isinstance(search, LocalSearch)

    def computed(candidate: Candidate) -> int:
        steps = len(candidate.steps)
        return steps if candidate.engine is None else sum(candidate.engine.computed(steps) or ())

    past: list[Observation] = []
    proposal = Proposal(Candidate(space.baselines()["fewest steps"].steps), "no cache")
    while (stage := Stage.parsed(proposal.stage)) is None or stage.step is not None:
        candidate = proposal.candidate
        # No step for free: a skipped one is worth 1, and to skip a computed one costs more.
        loss = 20 / computed(candidate) - len(candidate.steps)
        excess = max(0, computed(candidate) - 4)
        past.append(Observation(len(past), candidate, (loss,), excess, stage=proposal.stage))
        proposal = propose(search, past, len(past))
    best = min(past, key=lambda each: (each.excess, each.losses or ()))
    assert (len(best.candidate.steps), computed(best.candidate)) == (8, 4)


@pytest.mark.parametrize("name", ["times", "continuous", "guidance"])
def test_it_finds_the_bottom_of_a_valley(name: str) -> None:
    past = run(search_of(name), valley, 150)
    assert valley(past[0].candidate) > 1
    assert min(observation.losses[0] for observation in past if observation.losses) < 0.02


def test_a_sweep_tries_each_coordinate_up_and_down_by_its_step_then_by_half() -> None:
    search = search_of("continuous")
    centre = Candidate.from_time_steps([800.0, 500.0, 300.0, 100.0])
    past = run(search, lambda _: 9.0, 17, [Observation(0, centre, (1.0,))])
    moves = [INFO.log_snr(o.candidate.times) - INFO.log_snr(centre.times) for o in past[1:]]
    for step, sweep in ((0.4, moves[:8]), (0.2, moves[8:])):
        pairs = {(int(np.abs(move).argmax()), bool(move.sum() > 0)) for move in sweep}
        assert len(pairs) == 8
        for move in sweep:
            assert np.sort(np.abs(move)) == pytest.approx([0, 0, 0, step], abs=2e-3)
    assert [o.stage for o in past[1:]] == ["descent 1, step 0.4"] * 8 + ["descent 1, step 0.2"] * 8


def test_a_better_candidate_is_the_new_centre_at_once_and_keeps_the_step() -> None:
    search = search_of("times")
    start = Observation(0, Candidate.from_time_steps([800, 500, 300, 100]), (5.0,))
    better = Observation(1, Candidate.from_time_steps([700, 500, 300, 100]), (4.0,), stage="descent 1, step 0.1")
    near = propose(search, [start, better], 2)
    assert sum(a != b for a, b in zip(near.candidate.times, better.candidate.times, strict=True)) == 1
    assert near.stage == "descent 1, step 0.1"


def test_where_steps_are_too_small_another_descent_begins_near_the_best_and_goes_from_its_best_beginning() -> None:
    search = search_of("times", least_step=0.3, beginnings=3)
    best = Candidate.from_time_steps([800, 500, 300, 100])
    past = run(search, lambda candidate: 2.0 + valley(candidate), 13, [Observation(0, best, (1.0,))])
    assert [o.stage for o in past[9:12]] == ["descent 2, beginning"] * 3
    beginnings = sorted(past[9:12], key=lambda o: o.losses or ())
    for beginning in beginnings:
        assert np.abs(INFO.log_snr(beginning.candidate.times) - INFO.log_snr(best.times)).max() < 2
    assert past[12].stage == "descent 2, step 0.4"
    same = [len({*past[12].candidate.times} & {*beginning.candidate.times}) for beginning in beginnings]
    assert same[0] == 3


def test_what_is_measured_on_more_images_goes_before_what_was_stopped() -> None:
    search = search_of("times")
    complete = Observation(0, Candidate.from_time_steps([800, 500, 300, 100]), (50.0,))
    stopped = Observation(1, Candidate.from_time_steps([700, 500, 300, 100]), stopped=(100, 3.0))
    later = propose(search, [complete, stopped], 2)
    assert sum(a != b for a, b in zip(later.candidate.times, complete.candidate.times, strict=True)) == 1
    # In a descent of its own a stopped candidate will do, the best at most images.
    others = [
        Observation(
            1, Candidate.from_time_steps([600, 500, 300, 100]), stopped=(500, 9.0), stage="descent 2, step 0.4"
        ),
        Observation(
            2, Candidate.from_time_steps([650, 550, 350, 150]), stopped=(100, 2.0), stage="descent 2, step 0.4"
        ),
    ]
    again = propose(search_of("times", beginnings=1), [complete, begun(3), *others], 4)
    assert sum(a != b for a, b in zip(again.candidate.times, others[0].candidate.times, strict=True)) == 1


def begun(position: int) -> Observation:
    return Observation(position, Candidate.from_time_steps([999, 998, 997, 996]), None, stage="descent 2, beginning")


def test_kept_bounds_come_before_better_values() -> None:
    kept = Observation(0, Candidate.from_time_steps([800, 500, 300, 100]), (50.0,))
    beyond = Observation(1, Candidate.from_time_steps([700, 450, 250, 80]), (1.0,), excess=0.1)
    near = propose(search_of("times"), [kept, beyond], 2)
    assert sum(a != b for a, b in zip(near.candidate.times, kept.candidate.times, strict=True)) == 1


def test_what_other_optimizers_found_is_gone_on_from() -> None:
    search = search_of("times")
    past = run(search, valley, 30)
    found = Observation(30, Candidate.from_time_steps([604, 422, 238, 61]), (-1.0,), stage="times")
    near = propose(search, [*past, found], 31)
    assert sum(a != b for a, b in zip(near.candidate.times, found.candidate.times, strict=True)) == 1
    assert near.stage == "descent 1, step 0.4"


def test_what_others_found_in_a_later_descent_counts_to_that_descent() -> None:
    best = Observation(0, Candidate.from_time_steps([800, 500, 300, 100]), (1.0,))
    near = Candidate.from_time_steps([810, 520, 310, 110])
    beginning = Observation(1, near, (3.0,), stage="descent 2, beginning")
    foreign = Observation(2, Candidate.from_time_steps([604, 422, 238, 61]), (2.0,))
    proposal = propose(search_of("times", beginnings=1), [best, beginning, foreign], 3)
    assert sum(a != b for a, b in zip(proposal.candidate.times, foreign.candidate.times, strict=True)) == 1
    assert proposal.stage == "descent 2, step 0.4"


def test_workers_that_ask_before_anything_is_measured_get_different_candidates_of_one_sweep() -> None:
    search = search_of("times")
    past = [Observation(0, Candidate.from_time_steps([800, 500, 300, 100]), (5.0,))]
    for position in range(1, 12):
        proposal = propose(search, past, position)
        past.append(Observation(position, proposal.candidate, None, stage=proposal.stage))
    assert len({o.candidate for o in past}) == 12
    assert [o.stage for o in past[1:]] == ["descent 1, step 0.4"] * 8 + ["descent 1, step 0.2"] * 3


def test_it_begins_with_the_uniform_candidate_and_others_near_it_while_nothing_is_measured() -> None:
    search = search_of("times")
    past = run(search, lambda _: None, 4)
    assert past[0].candidate == search.space.baselines()["leading"]
    assert len({o.candidate for o in past}) == 4


def test_the_same_past_gives_the_same_proposal_and_another_seed_another_order() -> None:
    whole = run(search_of("times"), valley, 60)
    assert run(search_of("times"), valley, 60, whole[:37]) == whole
    assert run(search_of("times", seed=1), valley, 60) != whole


def test_times_come_first_then_layers_at_the_same_step_then_other_numbers_of_steps() -> None:
    search = search_of("joint any", beginnings=2)
    centre = Candidate((Step(800, (1, 2)), Step(500, ()), Step(200, ())))
    past = run(search, lambda _: 1.2, 110, [Observation(0, centre, (1.0,))])
    stages = [Stage.parsed(o.stage) for o in past[1:]]
    kinds = [(s.step, s.base, s.is_restructured) for s in stages if s is not None]
    assert kinds[:6] == [(0.4, None, False)] * 6
    layers = kinds.index((None, None, True))
    assert set(kinds[6:layers]) == {(0.4, 0, False)}
    assert kinds[layers : layers + 3] == [(None, None, True)] * 2 + [(0.4, None, False)]
    assert [len(o.candidate.steps) for o in past[layers + 1 : layers + 3]] == [4, 2]
    # The second descent never was better: what comes after it are smaller steps from the first one's best.
    later = next(o for o, s in zip(past[1:], stages, strict=True) if s is not None and s.step == 0.2)
    assert str(later.stage) == "descent 1, step 0.2"
    assert later.position > max(o.position for o in past if "descent 2" in str(o.stage))


def test_where_layers_led_to_the_centre_layers_go_on() -> None:
    search = search_of("joint any")
    centre = Observation(0, Candidate((Step(800, ()), Step(500, ()), Step(200, ()))), (5.0,))
    removed = Candidate((Step(800, (0,)), Step(500, ()), Step(200, ())))
    better = Observation(1, removed, (4.0,), stage=str(Stage(1, 0.2, 0)))
    proposal = propose(search, [centre, better], 2)
    assert proposal.origin == "layer 0 removed at step 2"
    assert proposal.stage == "descent 1, step 0.2, layers of 1"


def test_from_another_number_of_steps_that_is_better_the_next_one_is_tried() -> None:
    search = search_of("joint any", beginnings=1)
    past = run(search, lambda candidate: 10.0 - len(candidate.steps), 120)
    assert max(len(o.candidate.steps) for o in past) == 5
    begun = [o for o in past if "beginning of other steps" in str(o.stage)]
    assert [len(o.candidate.steps) for o in begun[:2]] == [4, 5]


def test_layers_go_with_their_steps() -> None:
    search = search_of("joint any")
    centre = Candidate((Step(800, (1, 2)), Step(500, (3,)), Step(200, ())))
    past = run(search, lambda _: 9.0, 7, [Observation(0, centre, (1.0,))])
    assert {o.candidate.removed for o in past} == {centre.removed}


STAGES = [Stage(1, 0.4), Stage(12, 0.025), Stage(3, None), Stage(2, 0.4, base=57), Stage(4, None, is_restructured=True)]


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_stage_is_read_from_its_text(stage: Stage) -> None:
    assert Stage.parsed(str(stage)) == stage
    assert Stage.parsed("joint 50%") is None
    assert Stage.parsed(None) is None


def at_rungs(values: dict[int, float], state: TrialState = TrialState.COMPLETE, stage: str | None = None) -> Any:
    attributes = {} if stage is None else {STAGE: stage}
    value = list(values.values())[-1]
    return create_trial(state=state, value=value, intermediate_values=values, user_attrs=attributes)


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_a_candidate_is_stopped_that_is_worse_than_the_best_was_after_as_many_images(direction: str, sign: int) -> None:
    study, pruner = optuna.create_study(direction=direction), WorseThanBest()
    running = at_rungs({100: sign * 9.0}, TrialState.RUNNING)
    assert not pruner.prune(study, running)  # nothing to compare with
    study.add_trial(at_rungs({100: sign * 8.0, 500: sign * 2.0}))
    study.add_trial(at_rungs({100: sign * 5.0, 500: sign * 3.0}))
    assert pruner.prune(study, running)
    assert not pruner.prune(study, at_rungs({100: sign * 7.0}, TrialState.RUNNING))
    assert not pruner.prune(study, at_rungs({100: sign * 8.0}, TrialState.RUNNING))
    assert not pruner.prune(study, at_rungs({50: sign * 99.0}, TrialState.RUNNING))


class FewerStepsAreWorse:
    """In two rungs; at most three steps are allowed."""

    identity = "fewer-steps-are-worse"
    rungs = (1, 2)
    directions: ClassVar[dict[str, str]] = {"loss": "minimize"}

    def __init__(self, cost: str) -> None:
        self.cost = cost
        self.bounds = (Bound(cost, 3, "at_most"),)

    def measure(self, candidate: Candidate, **_: Any) -> Iterator[Score]:
        count = len(candidate.steps)
        for rung in self.rungs:
            yield Score({"loss": 10.0 - count, self.cost: count}, images=rung, seconds=0.0)


@pytest.mark.parametrize(("cost", "is_stopped"), [("steps", False), ("nfe", True), ("seconds", False)])
def test_a_better_candidate_that_costs_too_much_is_stopped_where_the_best_does_not(
    cost: str, is_stopped: bool, tmp_path: Path
) -> None:
    study = ado.Study(
        "bounded",
        space={"kind": "engine", "engine": "taylorseer-cache", "steps": [3, 5]},
        objective=FewerStepsAreWorse(cost),
        optimizer="local",
        trials=30,
        storage=f"sqlite:///{tmp_path}/study.db",
        model_info=ado.ModelInfo(1000),
    )
    study.run(progress=False)
    proposed = [trial for trial in study.trials() if given_name(trial) is None]
    beyond = [trial for trial in proposed if len(json.loads(trial.user_attrs[CANDIDATE])["steps"]) > 3]
    assert beyond
    assert {trial.state for trial in beyond} == {TrialState.PRUNED if is_stopped else TrialState.COMPLETE}
    assert len(study.best().candidate.steps) == 3  # one nearer to the bound than the best is measured in full


def test_a_candidate_may_be_worse_by_the_tolerance_and_has_the_best_of_its_own_number_of_steps() -> None:
    study, pruner = optuna.create_study(), WorseThanBest(0.1, layer_tolerance=0.2)
    study.add_trial(at_rungs({100: 10.0, 500: 5.0}))
    assert not pruner.prune(study, at_rungs({100: 11.0}, TrialState.RUNNING))
    assert pruner.prune(study, at_rungs({100: 11.1}, TrialState.RUNNING))
    assert not pruner.prune(study, at_rungs({100: 12.0}, TrialState.RUNNING, str(Stage(1, 0.4, base=0))))
    assert pruner.prune(study, at_rungs({100: 12.1}, TrialState.RUNNING, str(Stage(1, 0.4, base=0))))
    begun, later = str(Stage(2, None, is_restructured=True)), str(Stage(2, 0.4))
    for stage, stops in ((begun, False), (later, True)):
        assert pruner.prune(study, at_rungs({100: 19.0}, TrialState.RUNNING, stage)) == stops
    study.add_trial(at_rungs({100: 19.0, 500: 9.0}, stage=begun))
    assert not pruner.prune(study, at_rungs({100: 20.0}, TrialState.RUNNING, later))
    assert pruner.prune(study, at_rungs({100: 21.0}, TrialState.RUNNING, later))
    assert pruner.prune(study, at_rungs({100: 20.0}, TrialState.RUNNING, str(Stage(1, 0.4))))


def test_a_space_without_coordinates_is_refused() -> None:
    space: Any = search_of("times").space

    class Plain:
        distributions, decode, encode, check = space.distributions, space.decode, space.encode, space.check

    with pytest.raises(ado.UserError, match="needs a space with the methods coordinates and moved; Plain does not"):
        build_optimizer({"kind": "local"}, "here").sampler(Plain(), 0)  # type: ignore[arg-type]
