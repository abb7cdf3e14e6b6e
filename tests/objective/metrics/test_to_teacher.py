"""Metrics against the teacher's images of the same noise: as objectives of a pipeline, and against formulas."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from marks import slow_but
from peers.samples import load, sampler_of

import autodiffusion_opt as ado
from autodiffusion_opt import Candidate, ModelInfo, Study, UserError
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.objective.metrics.base import TeacherConfig
from autodiffusion_opt.objective.metrics.psnr import MOST
from autodiffusion_opt.objective.metrics.ssim import similarity
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.kept import KeptRows
from autodiffusion_opt.sampling.teacher import Teacher

# diffusers' own set_timesteps, with NumPy 2.
pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

GOOD, BAD = Candidate.from_time_steps([900, 600, 300, 100]), Candidate.from_time_steps([10, 5])
INFO = ModelInfo(train_steps=1000)
# 8 x 8 pixels are too few for ssim; lpips has tests of its own.
ON_DIGITS = {"rfid": 0.0, "paired": 0.0, "psnr": MOST}  # kind -> its value for the teacher's own images
STEPS = 8


def sampler(pipeline: Any, **more: Any) -> ImageSampler:
    return ImageSampler(pipeline, **{"micro_batch": 50, "batch_size": 50} | more)


def objective(pipeline: Any, kind: str, **more: Any) -> Any:
    table = {"kind": kind, "images": 100, "teacher_steps": STEPS} | more
    if "features" in METRICS[kind].Config.model_fields:
        table = {"features": "digits"} | table
    given = pipeline if isinstance(pipeline, ImageSampler) else sampler(pipeline)
    return build(METRICS[kind].Config, table, "here").objective(given, INFO, Path())


def value(measured: Any, candidate: Candidate = GOOD, **more: Any) -> float:
    *_, score = measured.measure(candidate, **more)
    return float(next(iter(score.values.values())))


def test_every_kind_against_the_teacher_is_tested() -> None:
    assert {kind for kind in METRICS if issubclass(METRICS[kind].Config, TeacherConfig)} == {
        *ON_DIGITS,
        "ssim",
        "lpips",
    }


@pytest.mark.parametrize("kind", slow_but(ON_DIGITS, "paired"))
def test_the_teacher_itself_is_the_best_and_more_like_it_is_better(kind: str, digits: Any) -> None:
    measured = objective(digits, kind)
    teacher = Teacher(sampler(digits), STEPS).candidate
    values = [value(measured, candidate) for candidate in (teacher, GOOD, BAD)]
    assert values[0] == pytest.approx(ON_DIGITS[kind], abs=1e-5)
    assert np.isfinite(values).all()
    assert values == sorted(values, reverse=METRICS[kind].direction == "maximize")
    assert len(set(values)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(ON_DIGITS))
def test_the_teacher_has_the_noise_of_the_candidates_seed(kind: str, digits: Any) -> None:
    table = objective(digits, kind, seed=3)
    assert value(objective(digits, kind), seed=3) == value(table) != value(objective(digits, kind))


@pytest.mark.parametrize("kind", ["paired", "psnr"])
def test_each_image_is_compared_with_the_teachers_of_the_same_noise(
    kind: str, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same teacher with its images in another order is a worse match: here by one place."""
    right = value(objective(digits, kind))
    rows = KeptRows.rows
    monkeypatch.setattr(KeptRows, "rows", lambda self, start, stop: np.roll(rows(self, start, stop), 1, axis=0))
    wrong = value(objective(digits, kind))
    assert right < wrong if METRICS[kind].direction == "minimize" else right > wrong


@pytest.mark.parametrize("kind", slow_but(ON_DIGITS, "paired"))
def test_the_batch_size_does_not_matter(kind: str, digits: Any) -> None:
    values = [value(objective(sampler(digits, batch_size=size), kind)) for size in (50, 7, 100)]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-5)


@pytest.mark.parametrize("kind", slow_but(ON_DIGITS, "paired"))
def test_the_teacher_is_made_before_the_first_trial_once_for_each_seed(kind: str, digits: Any) -> None:
    pipeline = copy.deepcopy(digits)
    calls: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    measured = objective(pipeline, kind)
    assert sum(calls) == 100 * STEPS
    calls.clear()
    for seed in (0, 0, 3, 4, 3, 0):
        value(measured, BAD, seed=seed)
    assert sum(calls) == 6 * 100 * 2 + 2 * 100 * STEPS
    calls.clear()
    value(measured, BAD, images=150)
    assert sum(calls) == 150 * 2 + 50 * STEPS
    calls.clear()
    objective(pipeline, kind)
    assert calls == []


@pytest.mark.slow
def test_a_trials_seconds_are_without_the_teachers(digits: Any) -> None:
    measured = objective(digits, "psnr", teacher_steps=60)
    *_, score = measured.measure(BAD, seed=9)
    *_, again = measured.measure(BAD, seed=9)
    assert score.seconds < 5 * again.seconds


OTHER_PROCESS = """
import sys, torch, warnings
warnings.simplefilter("ignore")
torch.set_num_threads(1)
from pathlib import Path
from autodiffusion_opt import Candidate, ModelInfo
from autodiffusion_opt.config import build
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.load import load_pipeline
pipeline = load_pipeline("digits", scheduler="ddim", device="cpu")
calls = []
pipeline.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
table = {"kind": "paired", "images": 100, "features": "digits", "teacher_steps": 8}
objective = build(METRICS["paired"].Config, table, "here").objective(
    ImageSampler(pipeline, micro_batch=50, batch_size=50), ModelInfo(train_steps=1000), Path())
made = sum(calls)
*_, score = objective.measure(Candidate.from_time_steps([900, 600, 300, 100]))
print(made, repr(score.values["paired"]), objective.identity)
"""


@pytest.mark.slow
def test_another_process_finds_the_teacher_on_disk(digits: Any) -> None:
    measured = objective(digits, "paired")
    ran = subprocess.run([sys.executable, "-c", OTHER_PROCESS], capture_output=True, text=True, env={**os.environ})
    assert ran.returncode == 0, ran.stderr
    made, found, identity = ran.stdout.split()
    assert (int(made), float(found), identity) == (0, value(measured), measured.identity)


def test_a_damaged_file_is_made_again(digits: Any, cache: Path) -> None:
    right = value(objective(digits, "psnr"))
    for file in cache.rglob("*.npy"):
        content = bytearray(file.read_bytes())
        content[200] ^= 255
        file.write_bytes(content)
    assert value(objective(digits, "psnr")) == right


@pytest.mark.parametrize("kind", slow_but(ON_DIGITS, "rfid"))
def test_the_identity_is_the_teachers(kind: str, digits: Any) -> None:
    identity = objective(digits, kind).identity
    assert objective(sampler(digits, batch_size=7), kind, images=110, seed=5).identity == identity
    assert objective(digits, kind, teacher_steps=9).identity != identity
    assert objective(sampler(digits, micro_batch=25), kind).identity != identity
    if kind != "psnr":
        assert objective(digits, kind, features="pixels").identity != identity


def test_a_study_is_not_resumed_with_another_teacher(digits: Any, url: str) -> None:
    def study(pipeline: Any) -> Study:
        table = {"kind": "paired", "images": 10, "features": "pixels", "teacher_steps": 6}
        parts: dict[str, Any] = {"space": {"kind": "time-steps", "steps": 2}, "objective": table, "optimizer": "random"}
        return Study("s", pipeline={"model": pipeline, "micro_batch": 10}, trials=9, storage=url, **parts)

    results = study(digits).run(progress=False)
    assert all(np.isfinite(result.value) for result in results)
    assert study(digits).problem.fingerprint == study(digits).problem.fingerprint
    other = copy.deepcopy(digits)
    with torch.no_grad():
        other.unet.conv_out.bias += 0.01
    before, after = study(digits).problem.fingerprint, study(other).problem.fingerprint
    assert before["reference"] != after["reference"]
    with pytest.raises(UserError, match="was started with another definition"):
        study(other).run(progress=False)


# rfid.


def test_rfid_refuses_too_few_images_with_the_reason_before_the_teacher_is_made(digits: Any, cache: Path) -> None:
    with pytest.raises(UserError, match=r"at least 96 with rfid, 1.5 times the 64 .*; got 95: .*full rank.*paired"):
        objective(digits, "rfid", images=95)
    assert sum(len(np.load(file)) for file in cache.rglob("*.npy")) == 50  # a batch, for their dimensions
    measured = objective(digits, "rfid", images=96)
    with pytest.raises(UserError, match="at least 96 with rfid"):
        value(measured, images=80)
    with pytest.raises(UserError, match=r"at least 96 with rfid, .*; got 90"):
        objective(digits, "rfid", images=[90, 200])


@pytest.mark.parametrize("kind", slow_but(ON_DIGITS, "paired"))
def test_rungs_are_compared_with_the_same_teacher(kind: str, digits: Any) -> None:
    *scores, last = objective(digits, kind, images=[96, 130]).measure(GOOD)
    assert [score.images for score in scores] == [96]
    assert last.values[kind] == pytest.approx(value(objective(digits, kind, images=130)), rel=1e-6)
    if kind != "rfid":  # its statistics are of all of the teacher's images
        assert scores[0].values[kind] == pytest.approx(value(objective(digits, kind, images=96)), rel=1e-6)


def test_rfid_is_fid_to_the_teachers_images_as_a_folder(digits: Any, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "teacher").mkdir()
    images = torch.cat(list(Teacher(sampler(digits), STEPS).images(range(100), 0)))
    for index, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / "teacher" / f"{index:03d}.png")
    table = {"kind": "fid", "images": 100, "features": "digits", "reference": str(tmp_path / "teacher")}
    fid = build(METRICS["fid"].Config, table, "here").objective(sampler(digits), INFO, Path())
    assert value(objective(digits, "rfid")) == pytest.approx(value(fid), rel=1e-5)


# psnr and ssim, against formulas in float64.


def images(count: int, seed: int, size: tuple[int, ...] = (3, 16, 19)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8))


def test_psnr_is_the_mean_of_each_images_ratio(digits: Any) -> None:
    given = sampler(digits)
    theirs = torch.cat(list(given.images(GOOD, range(100), 0))).numpy().astype(np.float64)
    teacher = torch.cat(list(Teacher(given, STEPS).images(range(100), 0))).numpy().astype(np.float64)
    each = [20 * np.log10(255) - 10 * np.log10(np.mean((a - b) ** 2)) for a, b in zip(theirs, teacher, strict=True)]
    assert value(objective(digits, "psnr")) == pytest.approx(np.mean(each), rel=1e-9)


def ssim_by_scipy(x: Any, y: Any) -> float:
    """One image, as scikit-image has it with Wang et al.'s weights: a window of 11 x 11, its border left out."""

    def mean(plane: Any) -> Any:
        return scipy.ndimage.gaussian_filter(plane, 1.5, radius=5)[5:-5, 5:-5]

    planes = []
    for a, b in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
        one, other = mean(a), mean(b)
        first, second, both = mean(a * a) - one**2, mean(b * b) - other**2, mean(a * b) - one * other
        top = (2 * one * other + 6.5025) * (2 * both + 58.5225)
        planes.append(np.mean(top / ((one**2 + other**2 + 6.5025) * (first + second + 58.5225))))
    return float(np.mean(planes))


@pytest.mark.parametrize("size", [(3, 16, 19), (1, 11, 11), (3, 40, 12)])
def test_ssim_equals_its_formula(size: tuple[int, ...]) -> None:
    x, y = images(4, 0, size), images(4, 1, size)
    y = ((x.double() + y.double() * torch.linspace(0, 1, 4)[:, None, None, None]) / 2).round().to(torch.uint8)
    found = similarity(x.double(), y.double())
    assert found.tolist() == pytest.approx([ssim_by_scipy(*pair) for pair in zip(x.numpy(), y.numpy(), strict=True)])


def test_ssim_equals_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    x, y = images(4, 0).double(), images(4, 1).double()
    theirs = functional.structural_similarity_index_measure(x, y, data_range=255.0, reduction="none")
    assert similarity(x, y).tolist() == pytest.approx(theirs.tolist(), rel=1e-6)


def test_ssim_of_a_pipeline_is_1_for_the_teacher_and_less_for_others() -> None:
    pipeline = load("stable_diffusion", scheduler="ddim")
    given = sampler_of(pipeline, "stable_diffusion")
    measured = objective(given, "ssim", images=5, teacher_steps=6)
    assert dict(measured.directions) == {"ssim": "maximize"}
    assert value(measured, Teacher(given, 6).candidate) == pytest.approx(1, abs=1e-12)
    theirs = torch.cat(list(given.images(BAD, range(5), 0))).numpy()
    teacher = torch.cat(list(Teacher(given, 6).images(range(5), 0))).numpy()
    wanted = np.mean([ssim_by_scipy(*pair) for pair in zip(theirs, teacher, strict=True)])
    assert value(measured, BAD) == pytest.approx(wanted, rel=1e-9)
    assert wanted < 0.99


def test_ssim_refuses_images_that_are_smaller_than_its_window(digits: Any) -> None:
    with pytest.raises(UserError, match="windows of 11 x 11 pixels, so images must be at least as large; got 8 x 8"):
        value(objective(digits, "ssim", images=50))


def test_psnr_and_ssim_are_maximised() -> None:
    assert METRICS["psnr"].direction == METRICS["ssim"].direction == "maximize"
    assert METRICS["lpips"].direction == METRICS["paired"].direction == METRICS["rfid"].direction == "minimize"


def test_paired_works_with_a_single_batch_of_images_where_rfid_does_not(digits: Any) -> None:
    assert 0 < value(objective(digits, "paired", images=3)) < value(objective(digits, "paired", images=3), BAD)


def test_kl_refuses_too_few_images_with_the_reason(digits: Any) -> None:
    table = {"kind": "kl", "images": 64, "features": "digits", "reference": "digits"}
    with pytest.raises(UserError, match=r"at least 65 with kl, more than the 64 dimensions .*; got 64: .* no inverse"):
        build(METRICS["kl"].Config, table, "here").objective(sampler(digits), INFO, Path())


@pytest.mark.parametrize("kind", list(ON_DIGITS))
def test_a_teacher_of_no_steps_is_refused(kind: str, digits: Any) -> None:
    with pytest.raises(UserError, match=r"teacher_steps: .*greater than or equal to 1; got 0"):
        objective(digits, kind, teacher_steps=0)


class Brightness(ado.Metric):
    """How far each image's brightness is from that of the teacher's: a third party's metric on images."""

    class Config(TeacherConfig):
        """A key of its own."""

        power: float = 1.0

    def __init__(self, config: Any, reference: Any) -> None:
        super().__init__(config, reference)
        self.power, self.reference = config.power, reference
        self.differences: list[float] = []

    def add(self, images: Any) -> None:
        first = len(self.differences)
        theirs = self.reference.images(first, first + len(images))
        self.differences += (images.float() - theirs.float()).mean(dim=(1, 2, 3)).abs().tolist()

    def value(self) -> dict[str, float]:
        return {"worst": max(self.differences), "brightness": float(np.mean(self.differences)) ** self.power}


def test_a_third_party_may_compare_images_with_the_teachers(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    ado.register_metric("brightness", Brightness)
    measured = objective(digits, "brightness", power=2.0)
    *_, score = measured.measure(GOOD)
    assert list(score.values) == ["brightness", "worst"]
    assert value(measured, Teacher(sampler(digits), STEPS).candidate) == 0 < score.values["brightness"]
