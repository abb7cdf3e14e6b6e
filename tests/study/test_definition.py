"""What a study was started with stays: a change is refused with the difference, and nothing in SQL is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState
from PIL import Image

from autodiffusion_opt import Callback, Candidate, Study, UserError
from autodiffusion_opt.trials.attributes import DEFINITION, WORKER
from autodiffusion_opt.trials.studies import find_study

Write = Callable[..., Path]


class Full(Callback):
    """The first trial finds too little memory."""

    def proposed(self, number: int, candidate: Candidate) -> None:
        raise RuntimeError


def test_a_changed_definition_is_refused(study_file: Write, url: str) -> None:
    Study.load(study_file(), storage=url).run(1)
    changed = study_file(images="images = 30", population="population = 6")
    with pytest.raises(UserError) as error:
        Study.load(changed, storage=url).run()
    text = str(error.value)
    assert str(changed) in text
    assert "  objective.images: 20 -> 30\n  optimizer.population: 5 -> 6\n" in text
    assert len(Study.load(study_file(trials="trials = 2", device='device = "auto"'), storage=url).run()) == 2


@pytest.mark.slow
def test_a_file_is_put_right_before_anything_is_measured(study_file: Write, url: str) -> None:
    with pytest.raises(RuntimeError):
        Study.load(study_file(), storage=url).run(progress=Full())
    study = Study.load(study_file(micro_batch="micro_batch = 5"), storage=url)
    assert len(study.run(2)) == 2
    before = study.trials()
    assert {trial.state for trial in before} == {TrialState.COMPLETE, TrialState.WAITING}
    with pytest.raises(UserError, match="micro_batch: 5 -> 10"):
        Study.load(study_file(), storage=url).run(2)
    assert study.trials() == before


def test_a_study_whose_first_trial_another_worker_measures_is_not_put_right(study_file: Write, url: str) -> None:
    class Leave(Callback):
        def proposed(self, number: int, candidate: Candidate) -> None:
            raise RuntimeError

    study = Study.load(study_file(), storage=url)
    with pytest.raises(RuntimeError):
        study.run(progress=Leave())
    stored = find_study(study.storage, "small")
    assert stored is not None
    waiting = stored.get_trials(states=(TrialState.WAITING,))[0]
    started = study.storage.start(stored._study_id, waiting._trial_id)
    assert started is not None
    study.storage.set_trial_user_attr(started, WORKER, "elsewhere:1:1")
    before = study.trials()
    assert TrialState.RUNNING in {trial.state for trial in before}
    with pytest.raises(UserError, match="micro_batch: 10 -> 5"):
        Study.load(study_file(micro_batch="micro_batch = 5"), storage=url).run()
    assert study.trials() == before


def test_a_changed_model_is_refused(study_file: Write, url: str) -> None:
    study = Study.load(study_file(), storage=url)
    study.run(1)
    changed = Study.load(study_file(), storage=url)
    fingerprint = {**study.problem.fingerprint, "model": "another"}
    vars(changed)["problem"] = dataclasses.replace(study.problem, fingerprint=fingerprint)
    with pytest.raises(UserError, match=r"fingerprint\.model: '.*' -> 'another'"):
        changed.run()


@pytest.mark.usefixtures("scans")
def test_changed_reference_images_are_refused(study_file: Write, tmp_path: Path, url: str) -> None:
    path = study_file(reference='reference = "scans"')
    Study.load(path, storage=url).run(1)
    Image.new("L", (8, 8)).save(tmp_path / "scans" / "0.png")
    with pytest.raises(UserError, match=r"fingerprint\.reference: "):
        Study.load(path, storage=url).run(2)


def test_a_study_that_version_0_1_0_stored_is_refused_with_a_sentence(study_file: Write, url: str) -> None:
    study = Study.load(study_file(), storage=url)
    study.run(1)
    stored = find_study(study.storage, "small")
    assert stored is not None
    definition = stored.user_attrs[DEFINITION]
    pipeline = definition.pop("pipeline")
    stored.set_user_attr(DEFINITION, {**definition, "space": {**definition["space"], "pipeline": pipeline}})
    with pytest.raises(UserError, match=r"stored by version 0\.1\.0.*another name, or with another --storage"):
        Study.load(study_file(), storage=url).run()


def test_too_many_steps_for_the_model_are_refused_with_the_file(study_file: Write, url: str) -> None:
    path = study_file(steps="steps = 1001")
    with pytest.raises(UserError, match=r"steps must be at most 1000, .* got 1001") as error:
        Study.load(path, storage=url).run()
    assert f"{path}: space: " in str(error.value)
