"""Optuna's gRPC proxy as a storage: many workers that reach a database through one server, ``grpc://host:port``.

It has no transactions of several steps and passes no heartbeats on. So a worker of another machine that died holds its
trial, and over SQLite two workers may be handed one waiting trial.
"""

from __future__ import annotations

import contextlib
import warnings
from contextlib import AbstractContextManager

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, GrpcStorageProxy
from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.trials.attributes import WORKER
from autodiffusion_opt.trials.storage import Storage, patient
from autodiffusion_opt.trials.workers import this_worker

INSTALL = "pip install 'autodiffusion-opt[grpc]'"
# Seconds for which a server is waited for when it is opened.
READY_SECONDS = 10.0


class ProxyStorage(Storage, GrpcStorageProxy):
    """A storage behind Optuna's gRPC proxy.

    Args:
        url: ``grpc://host:port``.

    Raises:
        UserError: where no server answers there, or gRPC is not installed.
    """

    def __init__(self, url: sqlalchemy.URL) -> None:
        try:
            import grpc
        except ImportError as error:
            raise UserError(f"storage {url} needs gRPC ({error}): {INSTALL}") from None
        type(self).errors = (grpc.RpcError,)
        self.url = str(url)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(host=url.host or "localhost", port=url.port or 13000)
        try:
            self.wait_server_ready(READY_SECONDS)
        except ConnectionError as error:
            raise UserError(
                f"storage {url} cannot be opened: {error}. Start Optuna's run_grpc_proxy_server there"
            ) from None

    def _may_pass(self, error: Exception) -> bool:
        code = getattr(error, "code", lambda: None)()
        return getattr(code, "name", "") in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL")

    def _reach(self) -> None:
        pass  # a server is not told from another in its place

    def _let_go(self) -> None:
        pass  # gRPC connects again by itself

    def together(self) -> AbstractContextManager[None]:
        """Nothing is held back: the proxy writes each thing by itself."""
        return contextlib.nullcontext()

    def start(self, study_id: int, trial_id: int | None) -> int | None:
        """Start a waiting trial, or a new one, with this worker's name; the name of a waiting one comes just after.

        Returns:
            The trial's id; None where another worker took the waiting one.
        """
        if trial_id is None:
            template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={WORKER: this_worker()})
            return self.create_new_trial(study_id, template)
        try:
            if not self.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
        except optuna.exceptions.UpdateFinishedTrialError:
            return None
        self.set_trial_user_attr(trial_id, WORKER, this_worker())
        return trial_id

    def stale_trial_ids(self, study_id: int) -> set[int]:
        """Nothing is known of heartbeats."""
        return set()

    def record_heartbeat(self, trial_id: int) -> None:
        """The proxy passes none on."""

    def new_trials(self, study_id: int, unfinished: set[int], last_id: int) -> list[FrozenTrial]:
        """All are asked for; the proxy's cache sends what is new."""
        trials = self.get_all_trials(study_id, deepcopy=False)
        return [trial for trial in trials if trial._trial_id > last_id or trial._trial_id in unfinished]

    def changed(self, study_id: int, measuring: set[int], proposing: set[int]) -> set[int]:
        """All trials are asked for anyway."""
        return measuring | proposing

    def close(self) -> None:
        """Nothing is kept here."""

    def enqueue_once(self, study_id: int, template: FrozenTrial, key: str, known: int) -> bool:
        """Create a waiting trial, unless somebody did meanwhile, as far as can be seen just before."""
        value = template.user_attrs[key]
        trials = self.get_all_trials(study_id, deepcopy=False)
        if sum(trial.user_attrs.get(key) == value for trial in trials) != known:
            return False
        self.create_new_trial(study_id, template)
        return True


for _name in BaseStorage.__abstractmethods__:
    setattr(ProxyStorage, _name, patient(getattr(GrpcStorageProxy, _name)))
