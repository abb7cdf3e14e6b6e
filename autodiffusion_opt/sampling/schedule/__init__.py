"""Any time steps on any accepted diffusers scheduler, exactly as given, and off again without a trace.

A **schedule** is a candidate's times on a scheduler object. :func:`install_schedule` puts it there; the
pipeline then samples at these times, by the scheduler's own rule, as if diffusers had chosen them. Each of
the accepted schedulers is proved on uneven steps against an independent formula in float64; one that is not
accepted is refused by name.

    schedule = install_schedule(pipe.scheduler, (999, 700, 310.5, 40))
    try:
        pipe(num_inference_steps=4)
    finally:
        schedule.remove()

The rooms, each importing only those before it: ``noise`` (how much of it there is at a time), ``state`` (where
the sampler is in the times), ``solver_steps`` (steps of our own), ``objections`` (what cannot be accepted), ``specs``
(one entry a scheduler), ``queries`` (what can be asked before anything is installed), ``install``.
"""

from autodiffusion_opt.sampling.schedule.install import InstalledSchedule, install_schedule
from autodiffusion_opt.sampling.schedule.noise import is_log_linear, train_steps
from autodiffusion_opt.sampling.schedule.queries import (
    accepted,
    alpha_bar_at,
    check_scheduler,
    check_times,
    default_times,
    ends_at_zero,
    first_step,
    layout_of,
    own_times,
    shift_of,
    sigmas_of,
    stops_early,
    takes_continuous,
    time_range,
    untouched,
)
from autodiffusion_opt.sampling.schedule.state import schedule_on

__all__ = [
    "InstalledSchedule",
    "accepted",
    "alpha_bar_at",
    "check_scheduler",
    "check_times",
    "default_times",
    "ends_at_zero",
    "first_step",
    "install_schedule",
    "is_log_linear",
    "layout_of",
    "own_times",
    "schedule_on",
    "shift_of",
    "sigmas_of",
    "stops_early",
    "takes_continuous",
    "time_range",
    "train_steps",
    "untouched",
]
