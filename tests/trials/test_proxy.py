"""Optuna's gRPC proxy: a study through it, and what is said where it is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from faults.quick_study import history_of, study_of
from optuna.trial import TrialState
from peers.postgres import free_port

from autodiffusion_opt import UserError
from autodiffusion_opt.trials import proxy
from autodiffusion_opt.trials.attributes import BASELINE, WORKER
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.workers import this_worker

grpc = pytest.importorskip("grpc")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Of a proxy before a database on disk."""
    from optuna.storages._grpc.server import make_server

    port = free_port()
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/behind.db")
    server = make_server(storage, "127.0.0.1", port)
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_study_runs_and_resumes_through_it(url: str, tmp_path: Path) -> None:
    direct = study_of(f"sqlite:///{tmp_path}/direct.db", 12)
    direct.run(progress=False)
    study_of(url, 12).run(9, progress=False)
    study = study_of(url, 12)
    assert len(study.run(progress=False)) == 12
    assert [trial.values for trial in study.trials()] == [trial.values for trial in direct.trials()]
    assert {trial.user_attrs[WORKER] for trial in study.trials()} == {this_worker()}


def test_a_waiting_trial_is_enqueued_once_and_started_once(url: str) -> None:
    study = study_of(url, 12)
    study.run(1, progress=False)
    storage, study_id = study.storage, history_of(study).study._study_id
    template = optuna.trial.create_trial(state=TrialState.WAITING, user_attrs={BASELINE: "mine"})
    assert storage.enqueue_once(study_id, template, BASELINE, 0)
    assert not storage.enqueue_once(study_id, template, BASELINE, 0)
    waiting = history_of(study).unfinished(TrialState.WAITING)[-1]._trial_id
    assert storage.start(study_id, waiting) == waiting
    assert storage.start(study_id, waiting) is None
    storage.set_trial_state_values(waiting, TrialState.FAIL)
    assert storage.start(study_id, waiting) is None


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "READY_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"storage grpc://127.0.0.1:1 cannot be opened: .*run_grpc_proxy_server"):
        open_storage("grpc://127.0.0.1:1")
