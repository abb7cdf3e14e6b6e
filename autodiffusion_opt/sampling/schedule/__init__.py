"""Any time steps on any accepted diffusers scheduler, exactly as given, and off again without a trace.

A **schedule** is a candidate's times on a scheduler object. :func:`install_schedule` puts it there; the
pipeline then samples at these times, by the scheduler's own spec, as if diffusers had chosen them. Each of
the accepted schedulers is proved on uneven steps against an independent formula in float64; one that is not
accepted is refused by name.

    schedule = install_schedule(pipe.scheduler, (999, 700, 310.5, 40))
    try:
        pipe(num_inference_steps=4)
    finally:
        schedule.remove()
"""

from autodiffusion_opt.sampling.schedule.queries import (
    accepted,
    calls,
    calls_per_step,
    check_scheduler,
    check_times,
    default_times,
    nfe,
    sigmas_of,
    takes_continuous,
    time_range,
)
from autodiffusion_opt.sampling.schedule.install import InstalledSchedule, install_schedule

__all__ = [
    "InstalledSchedule",
    "accepted",
    "calls",
    "calls_per_step",
    "check_scheduler",
    "check_times",
    "default_times",
    "install_schedule",
    "nfe",
    "sigmas_of",
    "takes_continuous",
    "time_range",
]
