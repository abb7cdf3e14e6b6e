"""Claims: no two workers take the same position, a dead worker's is retried once, others' trials are left alone."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState
from trials.test_workers import dead_worker

from autodiffusion_opt import Candidate
from autodiffusion_opt.trials.attributes import BASELINE, CANDIDATE, ERROR, ORIGIN, RETRY_OF, STAGE, WORKER
from autodiffusion_opt.trials.claims import Claim, Claims
from autodiffusion_opt.trials.history import MOST_DEATHS, History
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.sql import SqlStorage
from autodiffusion_opt.trials.studies import create_study
from autodiffusion_opt.trials.workers import this_worker

ELSEWHERE = "elsewhere:1:1"


def at(time: int) -> Candidate:
    return Candidate.from_time_steps([time])


def encode(candidate: Candidate) -> dict[str, float]:
    return {"t1": candidate.times[0]}


@pytest.fixture
def study(url: str) -> optuna.Study:
    """An empty study in a database of its own."""
    return create_study(open_storage(url), "s", {"value": optuna.study.StudyDirection.MINIMIZE})


def claims_of(study: optuna.Study) -> Claims:
    return Claims(History(study), encode)


def take(claims: Claims, wanted: int = 100) -> Claim:
    claim = claims.take(wanted)
    assert claim is not None
    return claim


def given_to(study: optuna.Study, claim: Claim, worker: str, time: int | None = None) -> None:
    """The claimed trial is another worker's, with a candidate."""
    study._storage.set_trial_user_attr(claim.trial_id, WORKER, worker)
    if time is not None:
        study._storage.set_trial_user_attr(claim.trial_id, CANDIDATE, at(time).to_json())


def complete(study: optuna.Study, claim: Claim, value: float = 1.0) -> None:
    study._storage.set_trial_state_values(claim.trial_id, TrialState.COMPLETE, [value])


def trials(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False)


def test_a_claimed_trial_runs_under_this_workers_name(study: optuna.Study) -> None:
    claim = take(claims_of(study))
    (trial,) = trials(study)
    assert (claim.number, claim.position, claim.trial_id) == (0, 0, trial._trial_id)
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs[WORKER] == this_worker()


def test_a_waiting_trial_is_taken_before_a_new_position_and_gets_its_worker(study: optuna.Study) -> None:
    claims = claims_of(study)
    claims.enqueue({"leading": at(3), "trailing": at(4)})
    assert [take(claims).number for _ in range(3)] == [0, 1, 2]
    assert [trial.user_attrs[WORKER] for trial in trials(study)] == [this_worker()] * 3
    assert [trial.user_attrs.get(BASELINE) for trial in trials(study)] == ["leading", "trailing", None]


def test_only_the_wanted_positions_are_taken(study: optuna.Study) -> None:
    claims = claims_of(study)
    complete(study, take(claims, 3))
    given_to(study, take(claims_of(study), 3), ELSEWHERE)
    last = take(claims, 3)
    assert last.position == 2
    assert claims.take(3) is None
    complete(study, last)
    assert claims.take(3) is None
    assert take(claims, 4).position == 3


def test_a_trial_starts_with_its_worker_and_a_heartbeat_in_one_transaction(study: optuna.Study, url: str) -> None:
    claims = claims_of(study)
    claims.enqueue({"leading": at(3)})
    commits: list[object] = []
    sqlalchemy.event.listen(study._storage.engine, "commit", commits.append)  # type: ignore[attr-defined]
    for _ in range(2):
        claim = take(claims)
        with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
            rows = connection.execute(sqlalchemy.text("SELECT trial_id FROM trial_heartbeats ORDER BY trial_id")).all()
        assert rows[-1] == (claim.trial_id,)
    commits.clear()
    started = study._storage.start(study._study_id, None)  # type: ignore[attr-defined]
    assert len(commits) == 1
    trial = study._storage.get_trial(started)
    assert (trial.state, trial.user_attrs) == (TrialState.RUNNING, {WORKER: this_worker()})


def test_a_dead_workers_trial_is_retried_once(study: optuna.Study) -> None:
    claims = claims_of(study)
    lost, alive = take(claims), take(claims)
    given_to(study, lost, dead_worker(), 7)
    assert [claims.recover(100) for _ in range(3)] == [1, 0, 0]
    failed, running, retry = trials(study)
    assert (failed.state, running.state, retry.state) == (TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING)
    assert failed.user_attrs[ERROR] == "its worker died"
    assert retry.user_attrs == {RETRY_OF: 0, CANDIDATE: at(7).to_json()}
    assert retry.system_attrs["fixed_params"] == {"t1": 7.0}
    assert running.number == alive.number
    again = take(claims)
    assert (again.number, again.position) == (2, 0)


def test_a_retry_keeps_the_baselines_name_and_where_the_candidate_came_from(study: optuna.Study) -> None:
    claims = claims_of(study)
    claims.enqueue({"leading": at(3)})
    lost = take(claims)
    study._storage.set_trial_user_attr(lost.trial_id, STAGE, "times")
    given_to(study, lost, dead_worker())
    claims = claims_of(study)
    claims.recover(100)
    attributes = trials(study)[1].user_attrs
    assert (attributes[BASELINE], attributes[ORIGIN], attributes[STAGE]) == ("leading", "baseline", "times")
    # And it is not enqueued as a baseline again.
    claims.enqueue({"leading": at(3)})
    assert len(trials(study)) == 2


def test_a_worker_that_died_before_it_had_a_candidate_is_retried_without(study: optuna.Study) -> None:
    claims = claims_of(study)
    given_to(study, take(claims_of(study)), dead_worker())
    assert claims.recover(100) == 1
    assert trials(study)[1].user_attrs == {RETRY_OF: 0}


def test_an_earlier_position_comes_before_a_later_one_though_its_retry_was_enqueued_last(study: optuna.Study) -> None:
    claims = claims_of(study)
    claims.enqueue({"leading": at(3), "trailing": at(4)})
    given_to(study, take(claims_of(study)), dead_worker())
    claims = claims_of(study)
    assert take(claims, 1).position == 0
    assert claims.take(1) is None


def test_only_positions_below_the_wanted_number_are_retried(study: optuna.Study) -> None:
    claims = claims_of(study)
    dead = dead_worker()
    for claim in [take(claims) for _ in range(3)]:
        given_to(study, claim, dead)
    claims = claims_of(study)
    claims.recover(2)
    assert [trial.user_attrs.get(RETRY_OF) for trial in trials(study)[3:]] == [0, 1]
    claims.recover(3)
    assert [trial.user_attrs.get(RETRY_OF) for trial in trials(study)[3:]] == [0, 1, 2]


def test_a_worker_elsewhere_is_dead_when_its_heartbeat_stopped(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = claims_of(study)
    given_to(study, take(claims_of(study)), ELSEWHERE)
    assert claims.recover(100) == 0
    monkeypatch.setattr(study._storage, "grace_period", -1)  # as if two minutes had passed
    monkeypatch.setattr(study._storage, "back_since", time.monotonic())  # when no heartbeat could be written
    assert claims.recover(100) == 0
    monkeypatch.setattr(study._storage, "back_since", time.monotonic() - 1000)
    assert claims.recover(100) == 1


def test_a_worker_of_this_machine_lives_as_long_as_its_process(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat stops while a database is gone or a process is held up; its trial is not taken away."""
    claims = claims_of(study)
    take(claims)
    monkeypatch.setattr(study._storage, "grace_period", -1)
    assert claims.recover(100) == 0


def test_a_trial_without_a_worker_is_left_to_the_program_that_began_it(study: optuna.Study) -> None:
    claims = claims_of(study)
    template = optuna.trial.create_trial(state=TrialState.RUNNING)
    template.datetime_start = datetime.now() - timedelta(days=1)  # clocks differ
    study._storage.create_new_trial(study._study_id, template_trial=template)
    assert claims.recover(100) == 0
    assert claims.take(1) is None


def test_a_position_is_retried_once_however_many_workers_see_it_open(study: optuna.Study) -> None:
    """All read before one writes, as they may where the database does not lock early."""
    claims = claims_of(study)
    given_to(study, take(claims_of(study)), dead_worker(), 7)
    many = [claims_of(study) for _ in range(3)]
    claims.recover(0)
    for each in many:
        each._history.refresh()
    for each in many:
        each._enqueue_again(0)
    assert [trial.state.name for trial in trials(study)] == ["FAIL", "WAITING"]
    given_to(study, take(claims_of(study)), dead_worker())
    claims_of(study).recover(100)
    assert [trial.state.name for trial in trials(study)] == ["FAIL", "FAIL", "WAITING"]


def test_a_position_at_which_workers_die_again_and_again_is_given_up(study: optuna.Study) -> None:
    """Its candidate needs more memory than there is, say; a run would never end."""
    dead = dead_worker()
    for _ in range(MOST_DEATHS):
        claim = take(claims_of(study), 1)
        assert claim.position == 0
        given_to(study, claim, dead, 7)
    assert claims_of(study).take(1) is None
    assert len(trials(study)) == MOST_DEATHS


def test_letting_go_fails_this_workers_trials_and_no_others(study: optuna.Study) -> None:
    claims = claims_of(study)
    given_to(study, take(claims_of(study)), ELSEWHERE, 3)
    take(claims)
    claims.release("KeyboardInterrupt: ", 100)
    theirs, own, retry = trials(study)
    assert theirs.state == TrialState.RUNNING
    assert (own.state, own.user_attrs[ERROR]) == (TrialState.FAIL, "KeyboardInterrupt: ")
    assert (retry.state, retry.user_attrs[RETRY_OF]) == (TrialState.WAITING, 1)
    assert claims.others_at_work(100) == 1
    assert claims.others_at_work(0) == 0


def test_nobody_works_where_all_trials_ended_or_lost_their_workers(study: optuna.Study) -> None:
    claims = claims_of(study)
    complete(study, take(claims))
    given_to(study, take(claims_of(study)), dead_worker())
    assert claims.others_at_work(100) == 0


def test_baselines_that_several_workers_enqueue_are_there_once(study: optuna.Study) -> None:
    many = [claims_of(study) for _ in range(3)]
    for each in many:
        each._history.refresh()
    for each in many:
        for name, time_step in (("leading", 3), ("trailing", 4)):
            each._enqueue(at(time_step), {BASELINE: name, CANDIDATE: at(time_step).to_json()}, BASELINE, known=0)
    assert [trial.user_attrs[BASELINE] for trial in trials(study)] == ["leading", "trailing"]


def test_a_position_that_others_began_meanwhile_is_given_back(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers saw one position left, and both started a trial."""
    claims, others = claims_of(study), claims_of(study)
    complete(study, take(claims))
    start = SqlStorage.start

    def late(storage: SqlStorage, study_id: int, waiting: int | None) -> int | None:
        monkeypatch.setattr(SqlStorage, "start", start)
        given_to(study, take(others, 2), ELSEWHERE)
        return start(storage, study_id, waiting)

    monkeypatch.setattr(SqlStorage, "start", late)
    assert claims.take(2) is None
    assert [trial.state.name for trial in trials(study)] == ["COMPLETE", "RUNNING", "FAIL"]
    assert "not wanted" in trials(study)[2].user_attrs[ERROR]


def test_a_waiting_trial_that_another_worker_took_is_left_to_it(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, others = claims_of(study), claims_of(study)
    claims.enqueue({"leading": at(3), "trailing": at(4)})
    start = SqlStorage.start

    def late(storage: SqlStorage, study_id: int, waiting: int | None) -> int | None:
        monkeypatch.setattr(SqlStorage, "start", start)
        assert take(others).number == 0
        return start(storage, study_id, waiting)

    monkeypatch.setattr(SqlStorage, "start", late)
    assert take(claims).number == 1
