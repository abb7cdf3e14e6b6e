"""Metrics: a class with ``add(block)`` and ``value()``, a file each, one registry.

Of features, against a reference of real images: ``fid`` (Fréchet distance), ``kid`` (unbiased polynomial MMD), ``kl``
(between Gaussian fits). Of features, against the teacher's images of the same noise: ``rfid`` (Fréchet distance),
``paired`` (mean distance, image by image). Of images, against the teacher's: ``psnr``, ``ssim``, ``lpips``. Of images
and their prompts: ``clip-score``; ``command`` is a program of the user's own.
"""

from __future__ import annotations

from autodiffusion_opt.objective.metrics.base import METRICS, ImagesConfig, Metric, MetricConfig
from autodiffusion_opt.objective.metrics.clip_score import ClipScore
from autodiffusion_opt.objective.metrics.command import Command
from autodiffusion_opt.objective.metrics.fid import Fid
from autodiffusion_opt.objective.metrics.kid import Kid
from autodiffusion_opt.objective.metrics.kl import Kl
from autodiffusion_opt.objective.metrics.lpips import Lpips
from autodiffusion_opt.objective.metrics.paired import Paired
from autodiffusion_opt.objective.metrics.psnr import Psnr
from autodiffusion_opt.objective.metrics.relative_fid import RelativeFid
from autodiffusion_opt.objective.metrics.ssim import Ssim

METRICS.register("fid", Fid)
METRICS.register("kid", Kid)
METRICS.register("kl", Kl)
METRICS.register("rfid", RelativeFid)
METRICS.register("paired", Paired)
METRICS.register("psnr", Psnr)
METRICS.register("ssim", Ssim)
METRICS.register("lpips", Lpips)
METRICS.register("clip-score", ClipScore)
METRICS.register("command", Command)

__all__ = ["METRICS", "Fid", "ImagesConfig", "Kid", "Metric", "MetricConfig"]
