"""What a study was started with stays: a change is refused with the difference, and nothing in SQL is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState
from PIL import Image

from autodiffusion_opt import Candidate, Study, UserError
from autodiffusion_opt.study.run import Watch

Write = Callable[..., Path]


def test_a_changed_definition_is_refused(study_file: Write, url: str) -> None:
    Study.load(study_file(), storage=url).run(1)
    changed = study_file(images="images = 30", population="population = 6")
    with pytest.raises(UserError) as error:
        Study.load(changed, storage=url).run()
    text = str(error.value)
    assert str(changed) in text
    assert "  objective.images: 20 -> 30\n  optimizer.population: 5 -> 6\n" in text
    assert len(Study.load(study_file(trials="trials = 2", device='device = "auto"'), storage=url).run()) == 2


def test_a_file_is_put_right_before_anything_is_measured(study_file: Write, url: str) -> None:
    """As after a first trial for which the memory was too small."""

    class Full(Watch):
        def proposed(self, number: int, candidate: Candidate) -> None:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        Study.load(study_file(), storage=url).run(watch=Full())
    study = Study.load(study_file(micro_batch="micro_batch = 5"), storage=url)
    assert len(study.run(2)) == 2
    before = study.trials()
    assert {trial.state for trial in before} == {TrialState.COMPLETE, TrialState.WAITING}
    with pytest.raises(UserError, match="micro_batch: 5 -> 10"):
        Study.load(study_file(), storage=url).run(2)
    assert study.trials() == before


def test_a_changed_model_is_refused(study_file: Write, url: str) -> None:
    study = Study.load(study_file(), storage=url)
    study.run(1)
    other = Study.load(study_file(), storage=url)
    vars(other)["problem"] = dataclasses.replace(study.problem, fingerprint={**study.problem.fingerprint, "model": "other"})
    with pytest.raises(UserError, match=r"fingerprint\.model: '.*' -> 'other'"):
        other.run()


@pytest.mark.usefixtures("scans")
def test_changed_reference_images_are_refused(study_file: Write, tmp_path: Path, url: str) -> None:
    path = study_file(reference='reference = "scans"')
    Study.load(path, storage=url).run(1)
    Image.new("L", (8, 8)).save(tmp_path / "scans" / "0.png")
    with pytest.raises(UserError, match=r"fingerprint\.reference: "):
        Study.load(path, storage=url).run(2)


def test_too_many_steps_for_the_model(study_file: Write, url: str) -> None:
    path = study_file(steps="steps = 1001")
    with pytest.raises(UserError, match=r"steps must be at most 1000, .* got 1001") as error:
        Study.load(path, storage=url).run()
    assert str(path) in str(error.value)
