"""Several values of one objective: which are optimised, bounded, only reported; and what they cost to measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autodiffusion_opt import Candidate, ImageMetric, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.objective.features import PixelFeatures
from autodiffusion_opt.objective.goals import Bound, bounds_of
from autodiffusion_opt.objective.image_objective import ImageObjective
from autodiffusion_opt.sampling import timing
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.space import ModelInfo

INFO = ModelInfo(train_steps=1000, layers=18, flops=1000, layer_flops=(10,) * 18)
UNEVEN = Candidate.from_time_steps([926, 690, 424, 153], removed=[[1, 2], [], [5], []])
FID = {"kind": "fid", "images": 40, "features": "digits", "reference": "digits"}

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def objective(pipeline: Any, **keys: Any) -> Any:
    table = FID | keys
    config = build(METRICS[table["kind"]].Config, table, "here")
    return config.objective(ImageSampler(pipeline, micro_batch=20, batch_size=20), INFO, Path())


def values(given: Any, candidate: Candidate = UNEVEN) -> dict[str, float]:
    *_, last = given.measure(candidate)
    return dict(last.values)


def test_several_values_are_those_of_the_metrics_alone_and_costs_are_exact(digits: Any) -> None:
    alone = {kind: values(objective(digits, kind=kind))[kind] for kind in ("fid", "kid")}
    several = objective(
        digits,
        minimise=["flops", "fid", "nfe"],
        at_most={"layers": 70},
        report=["kid", "psnr"],
        metrics={"psnr": {"teacher_steps": 10}},
    )
    measured = values(several)
    assert list(several.directions.items()) == [("flops", "minimize"), ("fid", "minimize"), ("nfe", "minimize")]
    assert list(measured)[:3] == ["flops", "fid", "nfe"]
    assert {"fid": measured["fid"], "kid": measured["kid"]} == alone
    assert (measured["nfe"], measured["layers"], measured["flops"]) == (4, 4 * 18 - 3, 4 * 1000 - 30)
    assert 5 < measured["psnr"] < 50


def test_metrics_on_the_same_features_share_them(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    extract = PixelFeatures.__call__

    def counting(self: Any, images: Any) -> Any:
        calls.append(len(images))
        return extract(self, images)

    several = objective(digits, features="pixels", minimise=["fid", "kid"])
    monkeypatch.setattr(PixelFeatures, "__call__", counting)
    values(several)
    assert calls == [20, 20]


def test_a_metric_under_another_name_has_keys_of_its_own(digits: Any) -> None:
    pixels = values(objective(digits, features="pixels"))["fid"]
    named = objective(
        digits, minimise=["fid", "fd-pixels"], metrics={"fd-pixels": {"kind": "fid", "features": "pixels"}}
    )
    assert values(named) == {"fid": values(objective(digits))["fid"], "fd-pixels": pixels}


def test_what_is_reported_comes_after_the_last_rung_and_with_report_in_verify_not_in_trials(digits: Any) -> None:
    at_end = objective(digits, images=[20, 40], report=["kid"])
    assert [list(score.values) for score in at_end.measure(UNEVEN)] == [["fid"], ["fid", "kid"]]
    withheld = objective(digits, report=["kid"], report_in="verify")
    assert list(values(withheld)) == ["fid"]
    assert list(values(withheld.for_verify())) == ["fid", "kid"]


def test_seconds_are_the_median_of_calls_after_one_that_is_not_counted(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = iter([100.0, 5.0, 1.0, 2.0, 9.0, 4.0])
    now = [0.0]

    def images(self: Any, candidate: Any, indices: Any, seed: int) -> Any:
        now[0] += next(durations)
        yield indices

    monkeypatch.setattr(ImageSampler, "images", images)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    sampler = ImageSampler(digits, micro_batch=20, batch_size=20)
    assert timing.seconds_an_image(sampler, UNEVEN) == 4.0 / 20
    assert next(durations, None) is None


def test_seconds_belong_to_the_machine_they_were_measured_on(digits: Any) -> None:
    timed, untimed = objective(digits, minimise=["fid", "seconds"]), objective(digits, minimise=["fid", "nfe"])
    assert timed.identity.endswith("; cpu, 1 threads")
    assert untimed.identity == objective(digits).identity
    assert values(timed)["seconds"] > 0


@pytest.mark.parametrize(
    ("bound", "values", "excess"),
    [
        (Bound("fid", 20.0, "at_most"), {"fid": 30.0}, 0.5),
        (Bound("fid", 20.0, "at_most"), {"fid": 20.0}, 0.0),
        (Bound("ssim", 0.8, "at_least"), {"ssim": 0.6}, 0.25),
        (Bound("ssim", 0.8, "at_least"), {"ssim": 1.0}, -0.25),
        (Bound("loss", 0.0, "at_most"), {"loss": 3.0}, 3.0),
        (Bound("loss", -2.0, "at_most"), {"loss": -1.0}, 0.5),
    ],
)
def test_an_excess_is_a_share_of_the_limit(bound: Bound, values: dict[str, float], excess: float) -> None:
    assert bound.excess(values) == pytest.approx(excess)


def test_a_bound_of_at_most_one_on_a_cost_is_a_share_of_what_own_costs() -> None:
    bounds = bounds_of({"flops": 0.5, "nfe": 1, "layers": 40, "fid": 0.5}, {"ssim": 0.9})
    assert [bound.is_share for bound in bounds] == [True, True, False, False, False]
    assert [bound.of_own(8).limit for bound in bounds] == [4, 8, 40, 0.5, 0.9]
    assert [str(bound) for bound in bounds[:3]] == [
        "flops at most 0.5 of own",
        "nfe at most 1 of own",
        "layers at most 40",
    ]
    assert str(bounds[-1]) == "ssim at least 0.9"


WRONG = [
    ({"minimise": ["fid", "flop"]}, r"the name of a value must be one of: .*got 'flop'\. Did you mean 'flops'"),
    ({"minimise": ["fid", "fid"]}, "fid must stand once in minimise, maximise, report"),
    ({"minimise": ["fid"], "report": ["fid"]}, "fid must stand once"),
    ({"minimise": ["flops"]}, "fid, the table's kind, must stand in one of minimise"),
    ({"maximise": ["fid"]}, "of fid, less is better: it must stand in minimise"),
    ({"minimise": ["fid"], "maximise": ["nfe"]}, "of nfe, less is better"),
    ({"minimise": ["fid", "ssim"]}, "of ssim, more is better: it must stand in maximise"),
    ({"report_in": "verify"}, "report_in needs report"),
    ({"metrics": {"kid": {}}}, "metrics.kid must stand in one of the lists too"),
    ({"report": ["kid"], "metrics": {"kid": {"subset": 3}}}, "metrics.kid: key subset is unknown"),
    ({"report": ["mine"], "metrics": {"mine": {"kind": "fidd"}}}, r"metrics\.mine: .*Did you mean 'fid'"),
    ({"minimise": ["fid", "nfe"], "images": [20, 40], "pruner": "median"}, "pruners compare one value; got fid, nfe"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG)
def test_mistakes_are_told(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(METRICS["fid"].Config, FID | keys, "here")


def test_a_bound_alone_keeps_the_kinds_value(digits: Any) -> None:
    bounded = objective(digits, at_most={"flops": 0.5}, at_least={"psnr": 3}, metrics={"psnr": {"teacher_steps": 10}})
    assert dict(bounded.directions) == {"fid": "minimize"}
    assert [str(bound) for bound in bounded.bounds] == ["flops at most 0.5 of own", "psnr at least 3"]
    assert list(values(bounded)) == ["fid", "psnr", "flops"]


def test_a_function_on_images_may_give_several_values_beside_costs(digits: Any) -> None:
    metric = ImageMetric(
        lambda images: {"dark": 3.0, "bright": 4.0},
        images=20,
        identity="both",
        minimise=("dark", "nfe"),
        maximise=("bright",),
        at_most={"flops": 0.5},
    )
    made = metric.objective(ImageSampler(digits, micro_batch=20, batch_size=20), INFO, Path())
    assert isinstance(made, ImageObjective)
    assert values(made) == {"dark": 3.0, "nfe": 4.0, "bright": 4.0, "flops": 3970.0}
    assert metric.definition()["directions"] == {"dark": "minimize", "nfe": "minimize", "bright": "maximize"}
    assert metric.definition()["bounds"] == ["flops at most 0.5 of own"]
