"""The end of a schedule: a last step of no length, σ = 0, and an end time."""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import pytest
import torch
from peers import as_computed, dpm_solvers, solvers
from peers.scheduler_cases import CASES, dpm
from peers.scheduler_runs import Stepper, called, curved, difference, formula, sample_with, set_own_times, start
from peers.schedulers import DISTILLED, Case

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.sampling import schedule as schedules

# diffusers 0.42 with NumPy 2 and its own future: nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*algorithm_type.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),  # torchsde's, of σ that diffusers rounds
]
FORMS = {"image": "dpmsolver++", "noise": "dpmsolver"}
LEAST: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
TO_ZERO = (961.0, 900.0, 720.0, 551.0, 330.0, 0.0)  # whole blocks of two calls, and of three
STOPPED = (961.0, 900.25, 551.5, 260.75, 153.0)
END = 60.5


def least(name: str, of: Any, options: dict[str, Any], **config: Any) -> Case:
    """A scheduler that ends at the noise of time 0."""
    return Case(name, of, config=config, options=options, last="least")


def unipc_cases() -> list[Case]:
    return [
        least(
            "UniPCMultistepScheduler",
            dpm_solvers.unipc,
            {"order": order, "form": form, "kind": kind, "ends_low": low},
            solver_order=order,
            predict_x0=form == "image",
            solver_type=kind,
            lower_order_final=low,
            **LEAST,
        )
        for order, form, kind, low in itertools.product((1, 2, 3), FORMS, ("bh1", "bh2"), (True, False))
    ]


def singlestep_cases() -> list[Case]:
    of = {2: dpm_solvers.dpm_singlestep, 3: as_computed.dpm_singlestep_as_computed}
    return [
        least(
            "DPMSolverSinglestepScheduler",
            of[order],
            {"form": form},
            solver_order=order,
            algorithm_type=FORMS[form],
            lower_order_final=low,
            **LEAST,
        )
        for order, form, low in itertools.product((2, 3), FORMS, (True, False))
    ]


def multistep_cases() -> list[Case]:
    multistep = [
        least(
            "DPMSolverMultistepScheduler",
            dpm_solvers.dpm_multistep,
            {"order": order, "form": form, "authors_third": True, "ends_low": low},
            solver_order=order,
            algorithm_type=FORMS[form],
            lower_order_final=low,
            **LEAST,
        )
        for order, form, low in itertools.product((1, 2, 3), FORMS, (True, False))
    ]
    deis = [
        least("DEISMultistepScheduler", as_computed.deis_log_rho, {"order": order}, solver_order=order)
        for order in (1, 2, 3)
    ]
    return multistep + deis


WITHOUT_LENGTH = [*unipc_cases(), *singlestep_cases(), *multistep_cases()]
# Those whose last step does something all the same: UniPC corrects the step before, a block goes over its whole length.
WORKING = unipc_cases() + [case for case in singlestep_cases() if not case.config["lower_order_final"]]
IDLE = [case for case in WITHOUT_LENGTH if case not in WORKING]


def installed(case: Case, times: tuple[float, ...], double: bool = True, **options: Any) -> Any:
    scheduler = case.make(case.kinds[0], double=double)
    schedules.install_schedule(scheduler, times, **case.install, **options)
    return scheduler


def samples(case: Case, scheduler: Any, x: torch.Tensor) -> list[torch.Tensor]:
    return sample_with(scheduler, case, curved, x, case.kinds[0])


@pytest.mark.parametrize("times", [TO_ZERO, (900.0, 610.5, 300.25, 0.0)], ids=["6", "4"])
@pytest.mark.parametrize("case", WITHOUT_LENGTH, ids=str)
def test_a_last_step_of_no_length_is_the_limit_of_short_ones(case: Case, times: tuple[float, ...]) -> None:
    for double in (True, False):  # as diffusers makes it: float32
        scheduler, x = installed(case, times, double), start() if double else start().float()
        got = samples(case, scheduler, x)[-1]
        assert difference(got, formula(case, scheduler, x, times)) < (5e-6 if double else 2e-5)
        assert scheduler.step_index == len(times)


@pytest.mark.parametrize("case", WORKING, ids=str)
def test_a_last_step_of_no_length_does_what_else_it_has_to_do(case: Case) -> None:
    """Where it is left out, the result is that of the step before."""
    scheduler = installed(case, TO_ZERO)
    left_out = samples(case, scheduler, start())[-2]
    assert difference(left_out, formula(case, scheduler, start(), TO_ZERO)) > 1e-4


@pytest.mark.parametrize("case", IDLE, ids=str)
def test_a_last_step_of_no_length_changes_nothing_else(case: Case) -> None:
    *_, before, last = samples(case, installed(case, TO_ZERO), start())
    assert difference(last, before.numpy()) < 1e-5


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_a_last_step_of_no_length_is_finite_in_float32_for_every_noise_schedule(betas: str) -> None:
    """Solvers divide by its length in log σ, which must not round to 0."""
    for case in WITHOUT_LENGTH:
        scheduler = case.make("epsilon", beta_schedule=betas, beta_start=0.00085, beta_end=0.012)
        schedules.install_schedule(scheduler, TO_ZERO)
        assert torch.isfinite(samples(case, scheduler, start().float())[-1]).all(), str(case)


@pytest.mark.parametrize("config", [{}, {"use_flow_sigmas": True, **LEAST}], ids=["σ = 0", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_bh1_at_sigma_zero_is_refused_since_it_gives_nan(config: dict[str, Any], order: int) -> None:
    def make() -> Any:
        return diffusers.UniPCMultistepScheduler(solver_order=order, solver_type="bh1", **config)

    with pytest.raises(UserError, match="'bh1' gives NaN where it ends at σ = 0: use solver_type='bh2'"):
        schedules.install_schedule(make(), TO_ZERO[:-1])
    if config:  # diffusers' own times of a flow end above 0
        return
    scheduler, sample = make(), start().float()
    scheduler.set_timesteps(5)
    for time in scheduler.timesteps:
        sample = scheduler.step(torch.sin(sample), time, sample).prev_sample
    assert sample.isnan().any()


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_bh1_that_ends_above_zero_is_accepted(order: int, predict_x0: bool) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type="bh1", predict_x0=predict_x0, final_sigmas_type="sigma_min"
    )
    schedules.install_schedule(scheduler, TO_ZERO[:-1])
    sample = start().float()
    for time in scheduler.timesteps:
        sample = scheduler.step(torch.sin(sample), time, sample).prev_sample
    assert torch.isfinite(sample).all()


STOPPING = [case for case in CASES if case.stops]


def test_every_scheduler_but_the_distilled_and_dpm_solver_sde_takes_an_end_time() -> None:
    assert {case.name for case in STOPPING} == set(schedules.accepted()) - {*DISTILLED, "DPMSolverSDEScheduler"}
    assert all(schedules.takes_continuous(case.make()) == case.continuous for case in CASES)


@pytest.mark.parametrize(("case", "kind"), [(case, kind) for case in STOPPING for kind in case.kinds], ids=str)
def test_the_last_step_stops_at_the_end_time(case: Case, kind: str) -> None:
    tolerance = 1e-5 if case.float32 or case.flow else 1e-9
    for times, end in ((STOPPED, END), (TO_ZERO[:-1], 3), (STOPPED, 0.25)):
        scheduler = case.make(kind, double=True)
        schedule = schedules.install_schedule(scheduler, times, end_time=end, **case.install)
        scheduler.set_timesteps(len(times))
        got = sample_with(scheduler, case, curved, start(), kind)[-1]
        assert difference(got, formula(case, scheduler, start(), times, end)) < tolerance
        assert schedule.end_time == end
    assert len(scheduler.timesteps) == len(installed(case, STOPPED).timesteps)  # an end is not called


@pytest.mark.parametrize("case", STOPPING, ids=str)
def test_an_end_time_makes_another_result(case: Case) -> None:
    scheduler = installed(case, STOPPED, end_time=END)
    got = samples(case, scheduler, start())[-1]
    # where log σ is linear in time there is little noise left at END
    assert difference(got, formula(case, scheduler, start(), STOPPED)) > (1e-4 if case.log_sigma else 1e-3)


@pytest.mark.parametrize("case", [case for case in STOPPING if case.flow or case.last == "least"], ids=str)
def test_an_end_where_the_scheduler_ends_by_itself_changes_nothing(case: Case) -> None:
    """Time 0: the least noise that the model was trained at, or a flow's image."""
    by_itself, at_zero = (samples(case, installed(case, STOPPED, end_time=end), start()) for end in (None, 0))
    assert torch.equal(by_itself[-1], at_zero[-1])


def test_a_flow_in_blocks_of_calls_ends_in_the_image() -> None:
    """Its last call to σ = 0 is of order 1, however the end is given: order 2 divides by an infinite length."""
    case = next(case for case in CASES if case.flow and "Singlestep" in case.name)
    scheduler = installed(case, STOPPED[:4], end_time=0)
    assert scheduler.order_list == [1, 2, 1, 1]
    assert torch.isfinite(samples(case, scheduler, start())[-1]).all()
    assert installed(case, STOPPED[:4], end_time=END).order_list == [1, 2, 1, 2]


@pytest.mark.parametrize("case", STOPPING, ids=str)
def test_an_end_time_is_taken_off_again(case: Case) -> None:
    scheduler, untouched = (case.make(case.kinds[0]) for _ in range(2))
    before = dict(vars(scheduler))
    schedule = schedules.install_schedule(scheduler, STOPPED, end_time=END, **case.install)
    samples(case, scheduler, start().float())
    schedule.remove()
    assert list(before) == list(vars(scheduler))
    assert all(vars(scheduler)[key] is value for key, value in before.items())
    results = []
    for made in (scheduler, untouched):
        set_own_times(made, 5)
        sample, step = start().float(), Stepper(made)
        for time in called(made):
            seen = made.scale_model_input(sample, time) if hasattr(made, "scale_model_input") else sample
            torch.manual_seed(0)
            sample = step(torch.sin(seen), time, sample)
        results.append(sample)
    assert torch.equal(*results)


def test_an_end_time_is_forgotten_with_the_next_schedule() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler()
    schedules.install_schedule(scheduler, STOPPED, end_time=END)
    assert scheduler.sigmas[-1] > 0.1
    schedules.install_schedule(scheduler, STOPPED)
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize(
    ("name", "end", "said"),
    [
        ("LCMScheduler", 3, "LCMScheduler samples a model that is distilled to end in the image: leave end_time out"),
        ("TCDScheduler", 3, "TCDScheduler samples a model that is distilled"),
        ("DDIMScheduler", 40, "end_time must lie from 0 to below the last step's time, 40; got 40"),
        ("DDIMScheduler", 41.5, "below the last step's time, 40; got 41.5"),
        ("DDIMScheduler", -0.5, "must lie from 0 to below the last step's time, 40; got -0.5"),
        ("FlowMatchEulerDiscreteScheduler", -1, "must lie from 0 to below .*, 40; got -1"),
        ("UniPCMultistepScheduler", float("nan"), "finite number; got nan"),
        ("UniPCMultistepScheduler", True, "finite number; got True"),
        ("EulerDiscreteScheduler", "3", "finite number; got '3'"),
    ],
)
def test_an_end_time_that_cannot_be(name: str, end: Any, said: str) -> None:
    scheduler = getattr(diffusers, name)()
    before = dict(vars(scheduler))
    with pytest.raises(UserError, match=said):
        schedules.install_schedule(scheduler, (950, 700, 40), end_time=end)
    assert before == vars(scheduler)


def test_all_that_is_wrong_with_times_and_end_is_said_at_once() -> None:
    with pytest.raises(UserError, match=r"from 0 to 999 for this model; got 1500; end_time must lie .*; got 700"):
        schedules.check_times(diffusers.DDIMScheduler(), (1500, 700), 700)


@pytest.mark.parametrize(("last", "config"), [("least", LEAST), ("zero", {})])
def test_order_at_an_end_time_after_fifteen_steps(last: str, config: dict[str, Any]) -> None:
    """There DPM-Solver no longer lowers it, unless it is set to end at σ = 0, whatever the end time."""
    times = tuple(float(time) for time in range(960, 160, -50))
    case = Case("DPMSolverMultistepScheduler", dpm_solvers.dpm_multistep, config=dpm(**config), last=last)
    scheduler = installed(case, times, end_time=END)
    got = samples(case, scheduler, start())
    if last == "zero":  # what DDIM makes of the last step
        x, k = got[-2].numpy(), len(times) - 1
        alpha, sigma = (level[-2:] for level in case.levels(scheduler, times, END))
        expected = solvers.ddim(lambda x, _: curved(torch.from_numpy(x), k).numpy(), alpha, sigma, x, iter(()))
    else:
        expected = formula(case, scheduler, start(), times, END)
    assert difference(got[-1], expected) < 1e-5
    assert len(times) == 16


@pytest.mark.parametrize("end_time", [None, END])
@pytest.mark.parametrize("case", STOPPING, ids=str)
def test_a_later_first_step_is_a_schedule_of_the_times_from_there(case: Case, end_time: float | None) -> None:
    """Image to image: no solver remembers what it did not make."""
    whole, part = installed(case, STOPPED, end_time=end_time), installed(case, STOPPED[2:], end_time=end_time)
    schedule = schedules.schedule_on(whole)
    assert isinstance(schedule, schedules.InstalledSchedule)
    schedule.apply(first=2)
    assert whole.timesteps.tolist() == part.timesteps.tolist()
    results = []
    for scheduler in (whole, part):
        sample, step = start(), Stepper(scheduler)
        for call, time in enumerate(called(scheduler)):
            seen = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
            torch.manual_seed(call)
            sample = step(curved(seen, call), time, sample)
        results.append(sample)
    assert torch.equal(*results)
