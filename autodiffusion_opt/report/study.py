"""The study with its plots: what ``ado.Study`` is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.report import figures
from autodiffusion_opt.report.grid import grid
from autodiffusion_opt.study import run
from autodiffusion_opt.study.results import StoredStudy, stored_study
from autodiffusion_opt.study.samples import compared_candidates, measured_values, sample_blocks

if TYPE_CHECKING:
    from PIL.Image import Image
    from plotly.graph_objects import Figure


class Study(run.Study):
    __doc__ = run.Study.__doc__

    def plot_convergence(self) -> Figure:
        """The best value so far against images generated, with the baselines as lines, as a plotly figure.

        Raises:
            UserError: where plotly is not installed, the study was never run, or it has several values.
        """
        return figures.convergence([self._stored])

    def plot_schedule(self) -> Figure:
        """When the best candidates sample, above when the baselines do, on an axis of log-SNR, as a plotly figure.

        Raises:
            UserError: where plotly is not installed, or no trial is complete.
        """
        return figures.schedule(self._stored)

    def plot_layers(self) -> Figure:
        """Which layers the best candidates do not run at which step, as a plotly figure.

        Raises:
            UserError: where plotly is not installed, no trial is complete, or no layer is removed.
        """
        return figures.layers(self._stored)

    def plot_front(self) -> Figure:
        """The front of several values; or the value against what a candidate costs; as a plotly figure.

        Raises:
            UserError: where plotly is not installed, or the study was never run.
        """
        return figures.front(self._stored)

    def plot_images(self, count: int = 16, seed: int = 0) -> Image:
        """Images of the pipeline's own schedule, the best, uniform steps and the teacher, from the same noise.

        Args:
            count: images of each.
            seed: of their noise.

        Raises:
            UserError: where no trial is complete, or the study has no pipeline.
        """
        stored, sampler = self._stored, self.problem.sampler
        if sampler is None:
            raise UserError(f"the study {self.config.name!r} has no pipeline to make images with")
        candidates = compared_candidates(sampler, stored.top(1)[0].candidate)
        blocks = sample_blocks(sampler, candidates, count, seed, measured_values(stored.complete()))
        return grid(blocks, sampler.columns)

    @property
    def _stored(self) -> StoredStudy:
        return stored_study(self.config.name, self.storage)
