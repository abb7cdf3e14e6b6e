"""Studies side by side: numbers computed by hand from hand-made trials."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

import autodiffusion_opt as ado
from autodiffusion_opt.study.compare import percentages
from autodiffusion_opt.study.comparison import OptimizerComparison
from autodiffusion_opt.study.curves import band_of, curve_of
from autodiffusion_opt.study.results import Result, stored_study
from autodiffusion_opt.study.steps_front import StepsComparison, cost_text
from autodiffusion_opt.trials.attributes import (
    BASELINE,
    CANDIDATE,
    DEFINITION,
    EVALUATION_FAILED,
    REUSED_FROM,
    SCORE,
    SPENT,
)
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import create_study, set_value_names


def trial(
    value: float | None,
    images: int = 10,
    *,
    seconds: float = 2.0,
    nfe: int | None = 4,
    flops: int | None = None,
    steps: int = 4,
    **attributes: Any,
) -> FrozenTrial:
    """A complete trial; pruned where it has no value."""
    candidate = ado.Candidate.from_time_steps(range(10, 10 * (steps + 1), 10))
    score = {"values": {"fid": value}, "images": images, "seconds": seconds, "nfe": nfe, "flops": flops}
    return create_trial(
        state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
        values=None if value is None else [value],
        user_attrs={CANDIDATE: candidate.to_json(), SCORE: score, **attributes},
    )


def store(
    url: str,
    name: str,
    trials: Sequence[FrozenTrial | float],
    *,
    optimizer: str | dict[str, Any] = "random",
    seed: int = 0,
    steps: int = 4,
    direction: StudyDirection = StudyDirection.MINIMIZE,
    **definition: Any,
) -> None:
    """A study as SQL would hold it; of numbers, complete trials of ten images."""
    study = create_study(open_storage(url), name, {"fid": direction})
    set_value_names(study, ["fid"])
    table = {"kind": optimizer} if isinstance(optimizer, str) else optimizer
    parts = {"pipeline": {"model": "m"}, "space": {"kind": "time-steps", "steps": steps}, "objective": {"kind": "fid"}}
    study.set_user_attr(DEFINITION, {**parts, "optimizer": table, "seed": seed, **definition})
    for each in trials:
        study.add_trial(trial(each, steps=steps, nfe=steps) if isinstance(each, float | int) else each)


def run(url: str, name: str, metric: ado.CandidateMetric, *, trials: int = 9, seed: int = 0) -> list[Result]:
    """Run a study of two steps without a pipeline; its complete trials."""
    study = ado.Study(
        name,
        space={"kind": "time-steps", "steps": 2},
        objective=metric,
        optimizer="random",
        model_info=ado.ModelInfo(train_steps=1000),
        trials=trials,
        seed=seed,
        storage=url,
    )
    return study.run(progress=False)


def optimizers(*names: str, url: str, **settings: Any) -> OptimizerComparison:
    compared = ado.compare(names, url, **settings)
    assert isinstance(compared, OptimizerComparison)
    return compared


def front(*names: str, url: str, **settings: Any) -> StepsComparison:
    compared = ado.compare(names, url, **settings)
    assert isinstance(compared, StepsComparison)
    return compared


def curve(url: str, name: str) -> Any:
    return curve_of(stored_study(name, open_storage(url)))


# What is spent, and the best so far.


def test_best_so_far_after_each_trial_and_what_it_cost(url: str) -> None:
    """Pruned trials cost what they had and are worth nothing; what is reused costs nothing."""
    store(url, "a", [20.0, trial(None, 4, seconds=0.5), 25.0, trial(20.0, **{REUSED_FROM: 0}), 12.0])
    found = curve(url, "a")
    assert found.spent["images"] == (10, 14, 24, 24, 34)
    assert found.spent["trials"] == (1, 2, 3, 4, 5)
    assert found.spent["seconds"] == (2, 2.5, 4.5, 4.5, 6.5)
    assert found.best == (20, 20, 20, 20, 12)


def test_before_the_first_complete_trial_there_is_no_best(url: str) -> None:
    store(url, "a", [trial(None, 4), 7.0])
    assert math.isnan(curve(url, "a").best[0])
    assert curve(url, "a").best[1] == 7


def test_failed_trials_cost_what_is_known(url: str) -> None:
    begun = datetime(2026, 1, 1)
    failed = create_trial(
        state=TrialState.FAIL, user_attrs={EVALUATION_FAILED: True}, intermediate_values={50: 3.0, 100: 2.0}
    )
    failed.datetime_start, failed.datetime_complete = begun, begun + timedelta(seconds=9)
    died = create_trial(state=TrialState.FAIL)  # its retry comes later
    store(url, "a", [failed, died, 5.0])
    assert curve(url, "a").spent == {"images": (100, 100, 110), "trials": (1, 1, 2), "seconds": (9, 9, 11)}


def test_running_trials_are_not_counted(url: str) -> None:
    store(url, "a", [5.0, create_trial(state=TrialState.RUNNING)])
    assert curve(url, "a").spent["trials"] == (1,)


def test_warm_starts_come_first_counted_by_model_calls_of_the_median_candidate(url: str) -> None:
    store(url, "a", [trial(9.0, nfe=4), trial(8.0, nfe=5), trial(7.0, nfe=5)])
    study = stored_study("a", open_storage(url)).study
    entries = [{"name": "dp", "images": 250, "nfe": 46, "seconds": 12.5}, {"name": "x", "images": 5, "nfe": 10}]
    study.set_user_attr(SPENT, [entries[0], {**entries[1], "seconds": 0.5}])
    found = curve(url, "a")
    assert found.spent["images"] == (2320, 2330, 2340)  # 250 · 46 / 5 + 5 · 10 / 5 + 10
    assert found.spent["seconds"] == (15, 17, 19)
    assert found.spent["trials"] == (1, 2, 3)


def test_a_value_beyond_its_bounds_is_no_best(url: str) -> None:
    def loss(candidate: ado.Candidate) -> dict[str, float]:
        return {"loss": -candidate.times[0], "first": candidate.times[0]}

    metric = ado.CandidateMetric(loss, identity="loss", name="loss", at_most={"first": 500})
    results = run(url, "bounded", metric, trials=30)
    assert curve(url, "bounded").best[-1] == min(result.value for result in results if not result.excess) >= -500
    assert min(result.value for result in results) < -500


def test_the_median_band_holds_the_last_value_of_a_study_that_ended(url: str) -> None:
    store(url, "a", [9.0, 5.0, 4.0])
    store(url, "b", [8.0])
    band = band_of([curve(url, "a"), curve(url, "b")], "images", 1)
    assert band.at == (10, 20, 30)
    assert (band.median, band.low, band.high) == ((8.5, 6.5, 6), (8, 5, 4), (9, 8, 8))


def test_the_band_is_infinite_while_half_of_the_seeds_have_no_value(url: str) -> None:
    store(url, "a", [trial(None), 5.0])
    store(url, "b", [8.0])
    curves = [curve(url, "a"), curve(url, "b")]
    band = band_of(curves, "trials", 1)
    assert (band.at, band.median, band.low) == ((1, 2), (math.inf, 6.5), (8, 5))
    assert band_of(curves, "trials", -1).median[0] == -math.inf  # where more is better


# Which optimizer.


@pytest.fixture
def stored(url: str) -> str:
    """Two optimizers; the best value is 10, so that 5 % is 10.5 and 20 % is 12."""
    store(url, "a0", [20.0, 12.0, 10.4, 10.0], optimizer="tpe", seed=0)  # 5 %: 30 images, 20 %: 20
    store(url, "a1", [15.0, trial(None, 4), 11.5, 11.0], optimizer="tpe", seed=1)  # never, 24
    store(url, "a2", [10.5, 10.3], optimizer="tpe", seed=2)  # 10, 10
    store(url, "b0", [30.0, 14.0, 13.0], seed=0)  # never, never
    store(url, "b1", [trial(40.0, **{BASELINE: "own"}), 12.0], seed=1)  # never, 20
    return url


def test_images_until_within_shares_of_the_best_of_all(stored: str) -> None:
    compared = optimizers("a*", "b*", url=stored)
    assert (compared.best.name, compared.best.searched, compared.axis) == ("a0", 10, "images")
    tpe, random = compared.optimizers
    assert (tpe.name, random.name) == ("tpe", "random")
    five, twenty = tpe.within[5.0], tpe.within[20.0]
    assert (five.spent["images"].median, five.spent["images"].low, five.spent["images"].high) == (30, 10, math.inf)
    assert (five.spent["trials"].median, five.spent["seconds"].median) == (3, 6)
    assert (five.seeds, five.of) == (2, 3)
    assert (twenty.spent["images"].median, twenty.seeds) == (20, 3)
    assert (random.within[5.0].seeds, random.within[20.0].seeds) == (0, 1)
    assert random.within[20.0].spent["images"].median == math.inf


def test_the_final_values_over_seeds(stored: str) -> None:
    tpe, random = optimizers("a*", "b*", url=stored).optimizers
    assert (tpe.final.median, tpe.final.low, tpe.final.high) == (10.3, 10, 11)
    assert (random.final.median, random.winner.name) == (12.5, "b1")


def test_the_numbers_in_words(stored: str) -> None:
    fast, trials = optimizers("a*", "b*", url=stored).sentences
    assert fast == (
        "tpe is first to come within 5 % of the best fid, 10: after 30 images in the median over seeds; "
        "no other does in the median"
    )
    assert trials == "the studies have 2 to 4 finished trials; those that ended early keep their last value"
    (later, *_) = optimizers("a2", "b1", "a0", url=stored, within=[20]).sentences
    assert later.endswith("after 15 images in the median over seeds; then random, after 20")  # (10 + 20) / 2
    (last, *_, single) = optimizers("a1", "b0", "b1", url=stored, within=[1]).sentences
    assert last.startswith("tpe is first to come within 1 % of the best fid, 11: after 34 images")
    assert single == "one seed tells little of chance; run more of tpe with --seed"


def test_where_no_optimizer_comes_near_in_the_median_the_final_value_decides(url: str) -> None:
    for seed, last in enumerate((10.0, 30.0, 31.0)):
        store(url, f"a{seed}", [40.0, last], optimizer="tpe", seed=seed)
        store(url, f"b{seed}", [40.0, 25.0], seed=seed)
    compared = optimizers("a*", "b*", url=url)
    assert [summary.name for summary in compared.optimizers] == ["random", "tpe"]
    assert compared.sentences == (
        "no optimizer comes within 20 % of the best fid, 10, in the median over its seeds; random has the best median "
        "in the end, 25",
    )


@pytest.mark.slow
def test_more_is_better_where_the_study_says_so(url: str) -> None:
    more = StudyDirection.MAXIMIZE
    store(url, "a", [10.0, 19.0, 20.0], optimizer="tpe", direction=more)
    store(url, "b", [16.0, 15.0], direction=more)
    compared = optimizers("a", "b", url=url)
    tpe, random = compared.optimizers
    assert (compared.direction, compared.best.name) == ("maximize", "a")
    assert tpe.within[5.0].spent["images"].median == 20  # 19 and more
    assert random.within[20.0].spent["images"].median == 10  # 16 and more
    assert random.final.median == 16
    assert tpe.bands["images"].median == (10, 19, 20)


def test_negative_values_have_shares_of_their_size(url: str) -> None:
    store(url, "a", [-5.0, -9.6, -10.0])
    (only,) = optimizers("a", url=url).optimizers
    assert only.within[5.0].spent["trials"].median == 2


def test_studies_without_images_are_measured_by_trials(url: str) -> None:
    for seed in range(2):
        run(url, f"plain{seed}", ado.CandidateMetric(lambda candidate: candidate.times[0], identity="x"), seed=seed)
    compared = optimizers("plain0", "plain1", url=url)
    assert compared.axis == "trials"
    (only,) = compared.optimizers
    assert [study.seed for study in only.studies] == [0, 1]
    assert only.bands["trials"].at[0] == 1


def test_optimizers_of_one_kind_are_told_apart_by_what_differs(url: str) -> None:
    for population in (5, 10):
        store(url, f"p{population}", [9.0], optimizer={"kind": "evolution", "population": population, "parents": 2})
    store(url, "r", [8.0])
    names = {summary.name for summary in optimizers("p5", "p10", "r", url=url).optimizers}
    assert names == {"evolution population=5", "evolution population=10", "random"}


def test_a_name_is_taken_once_and_shared_parts_of_names_are_left_out(url: str) -> None:
    for seed in range(2):
        store(url, f"d+objective.images=[5, 10]+optimizer=random-seed{seed}", [9.0], seed=seed)
    compared = optimizers("d+*-seed*", "d+objective.images=[5, 10]+*", url=url)
    assert [study.label for study in compared.studies] == ["optimizer=random-seed0", "optimizer=random-seed1"]


def test_the_numbers_as_json(stored: str) -> None:
    told = optimizers("a*", "b*", url=stored).to_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["best"] == {"study": "a0", "value": 10}
    tpe = told["optimizers"][0]
    assert tpe["within"]["5"]["images"] == {"median": 30, "low": 10, "high": math.inf}
    assert tpe["within"]["5"]["reached"] == 2
    assert tpe["curves"]["images"]["at"][:2] == [10, 20]
    assert told["studies"][0]["curve"] == {
        "images": [10, 20, 30, 40],
        "trials": [1, 2, 3, 4],
        "seconds": [2, 4, 6, 8],
        "best": [20, 12, 10.4, 10],
    }
    assert {study["study"]: study["own"] for study in told["studies"]}["b1"] == 40


# How many steps.


def test_a_front_marks_what_is_dominated(url: str) -> None:
    for steps, value in ((2, 30.0), (4, 12.0), (6, 13.0), (8, 5.0)):
        store(url, f"s{steps}", [trial(4 * value, steps=steps, nfe=steps, **{BASELINE: "own"}), value], steps=steps)
    compared = front("s8", "s6", "s4", "s2", url=url)
    assert (compared.cost, [study.name for study in compared.studies]) == ("nfe", ["s2", "s4", "s6", "s8"])
    assert [study.name for study in compared.front] == ["s2", "s4", "s8"]
    assert compared.dominated == {"s6": "s4"}
    flattered, first, second = compared.sentences
    assert "--verify" in flattered
    assert first == "s2 with 2 NFE is better than own with 6 NFE: fid 30 against 52"
    assert second == "s4 with 4 NFE is better than own with 8 NFE: fid 12 against 20"
    told = compared.to_dict()
    assert (told["front"], told["dominated"]) == (["s2", "s4", "s8"], {"s6": "s4"})


def test_a_front_is_of_flops_where_they_say_more_than_calls(url: str) -> None:
    store(url, "wide", [trial(9.0, nfe=4, flops=400)], steps=4)
    store(url, "thin", [trial(9.5, nfe=6, flops=300, steps=6)], steps=6)
    compared = front("wide", "thin", url=url)
    assert (compared.cost, [study.name for study in compared.front]) == ("flops", ["thin", "wide"])
    store(url, "same", [trial(9.5, nfe=6, flops=600, steps=6)], steps=6)
    assert front("wide", "same", url=url).cost == "nfe"


@pytest.mark.parametrize(
    ("cost", "number", "text"),
    [("nfe", 6, "6 NFE"), ("flops", 2.5e12, "2.5 TFLOPs"), ("flops", 23_190_000, "23.19 MFLOPs")],
)
def test_costs_have_units(cost: str, number: float, text: str) -> None:
    assert cost_text(cost, number) == text


def test_budgets_of_layer_runs_are_numbers_of_steps(url: str) -> None:
    for budget in (36, 72):
        store(url, f"n{budget}", [trial(9.0, nfe=budget // 18)], space={"kind": "joint", "n_max": budget})
    assert front("n36", "n72", url=url).dominated == {"n72": "n36"}


def test_a_front_needs_to_know_what_candidates_cost(url: str) -> None:
    store(url, "a", [trial(9.0, nfe=None)], steps=4)
    store(url, "b", [8.0], steps=5)
    with pytest.raises(ado.UserError, match="compared by their NFE; that of a is not known"):
        ado.compare(["a", "b"], url)


# What is refused.


def test_studies_that_differ_in_more_are_refused_with_what_differs(url: str) -> None:
    store(url, "a", [9.0], steps=4)
    store(url, "b", [9.0], steps=6, objective={"kind": "kid"})
    with pytest.raises(ado.UserError, match=r"(?s)these differ in more:\na -> b:\n  objective\.kind: 'fid' -> 'kid'$"):
        ado.compare(["a", "b"], url)


def test_equal_seeds_of_an_optimizer_are_no_repeats(url: str) -> None:
    store(url, "a", [9.0])
    store(url, "b", [9.0])
    with pytest.raises(ado.UserError, match="'a' and 'b' are both random with seed 0"):
        ado.compare(["a", "b"], url)


def test_names_that_are_not_there_are_refused(url: str) -> None:
    store(url, "digits", [9.0])
    with pytest.raises(ado.UserError, match="Did you mean 'digits'"):
        ado.compare(["digit"], url)
    with pytest.raises(ado.UserError, match=r"no study in .* fits 'x\*'; there are: digits"):
        ado.compare("x*", url)
    with pytest.raises(ado.UserError, match="got none"):
        ado.compare([], url)


def test_a_study_without_a_complete_trial_is_refused(url: str) -> None:
    store(url, "a", [trial(None)])
    with pytest.raises(ado.UserError, match="'a' has no complete trial yet"):
        ado.compare(["a"], url)


def test_several_values_are_refused(url: str) -> None:
    metric = ado.CandidateMetric(
        lambda candidate: {"x": candidate.times[0], "y": candidate.times[1]}, identity="xy", minimise=["x", "y"]
    )
    run(url, "two", metric)
    with pytest.raises(ado.UserError, match="'two' has x, y"):
        ado.compare(["two"], url)


def test_shares_must_be_percentages(url: str) -> None:
    assert percentages("5, 20.5") == (5.0, 20.5)
    with pytest.raises(ado.UserError, match="such as 5,20; got '5,x'"):
        percentages("5,x")
    with pytest.raises(ado.UserError, match="above 0; got 0"):
        ado.compare(["a"], url, within=[0])
