"""``rm``, ``rename`` and ``copy``: what they do, ask and refuse."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from autodiffusion_opt import Study
from autodiffusion_opt.trials.attributes import WORKER
from autodiffusion_opt.trials.database import without_password
from autodiffusion_opt.trials.opening import open_storage
from autodiffusion_opt.trials.studies import find_study, need_study
from autodiffusion_opt.trials.workers import this_worker

Call = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


@pytest.fixture
def there(ran: tuple[Path, str], url: str, call: Call) -> str:
    """A database of this test's own with a copy of the small study."""
    assert call("copy", "small", "--storage", ran[1], "--to", url)[0] == 0
    return url


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def names(url: str) -> set[str]:
    return {study.study_name for study in open_storage(url).get_all_studies()}


def run_a_trial(url: str, worker: str) -> None:
    """A running trial of a worker whose heartbeat is fresh."""
    study = need_study(open_storage(url), "small")
    trial_id = study._storage.create_new_trial(study._study_id)
    study._storage.set_trial_user_attr(trial_id, WORKER, worker)
    study._storage.record_heartbeat(trial_id)


def test_rm_deletes_what_it_names_and_nothing_else(there: str, call: Call) -> None:
    for name in ("second", "third"):
        assert call("copy", "small", "--storage", there, "--to", there, "--name", name)[0] == 0
    code, out, _ = call("rm", "second", "third.toml", "second", "--yes", "--storage", there, "--json")
    assert code == 0
    assert json.loads(out) == {"removed": [{"study": "second", "trials": 14}, {"study": "third", "trials": 14}]}
    assert names(there) == {"small"}
    assert call("best", "small", "--storage", there)[0] == 0
    code, out, _ = call("rm", "small", "--yes", "--storage", there)
    assert (code, out) == (0, "deleted 'small' (14 trials)\n")
    assert names(there) == set()


@pytest.mark.parametrize(("answer", "left"), [("y\n", set()), ("n\n", {"small"}), ("\n", {"small"})])
def test_rm_asks_and_says_how_many_trials_would_go(
    answer: str, left: set[str], there: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, out, err = call("rm", "small", "--storage", there)
    assert code == 0
    assert f"Delete 'small' (14 trials) from {without_password(there)}? [y/N]" in err
    assert (names(there), "nothing was deleted" in err, bool(out)) == (left, bool(left), not left)


def test_rm_without_a_terminal_needs_yes(there: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, _, err = call("rm", "small", "--storage", there)
    assert (code, names(there)) == (2, {"small"})
    assert "rm asks before it deletes 'small' (14 trials), and there is no terminal to ask in: give --yes" in err


def test_rm_deletes_nothing_where_one_name_is_wrong(there: str, call: Call) -> None:
    code, _, err = call("rm", "small", "smal", "--yes", "--storage", there)
    assert (code, names(there)) == (2, {"small"})
    assert "Did you mean 'small'?" in err


@pytest.mark.slow
def test_a_renamed_study_is_continued_shown_and_measured_again(
    there: str, study_file: Write, call: Call, tmp_path: Path
) -> None:
    code, out, _ = call("rename", "small", "big.toml", "--storage", there, "--json")
    assert (code, json.loads(out)) == (0, {"study": "big", "trials": 14})
    assert names(there) == {"big"}
    (before,) = json.loads(call("best", "big", "-k", 1, "--storage", there, "--json")[1])
    code, _, err = call("verify", "big", "--storage", there, "--images", 4, "--repeats", 1)
    assert (code, err) == (0, "")
    code, out, err = call("run", study_file("big"), "--storage", there, "--trials", 15, "--json")
    assert (code, json.loads(out)["trials"]) == (0, 15)
    assert "continuing after 14 of 15 trials" in err
    assert json.loads(out)["best"]["value"] <= before["value"]
    assert call("rename", "big", "small", "--storage", there)[1] == "'big' is now 'small' (15 trials)\n"


@pytest.mark.parametrize("name", ["", "a.toml.toml", " small", "small\n", "a\x1b[2Jb", "n" * 513])
def test_a_name_that_no_study_can_have_is_refused(name: str, there: str, call: Call) -> None:
    for words in (("rename", "small", name), ("copy", "small", "--to", there, "--name", name)):
        code, _, err = call(*words, "--storage", there)
        assert (code, names(there)) == (2, {"small"})
        assert "a study's name must have 1 to 512 printable characters" in err


def test_copy_goes_to_a_new_file_and_refuses_a_name_that_is_there(there: str, call: Call, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/new/copy.db"
    code, out, _ = call("copy", "small", "--storage", there, "--to", target)
    assert (code, out) == (0, f"copied to {target}: 'small' (14 trials)\n")
    code, _, err = call("copy", "small", "--storage", there, "--to", target)
    assert code == 2
    assert f"{target} must have no study 'small' yet, and has one: give another name" in err
    code, out, _ = call("copy", "small", "--storage", there, "--to", target, "--name", "again", "--json")
    assert (code, json.loads(out)) == (0, {"study": "again", "trials": 14, "storage": target})
    assert names(target) == {"small", "again"}
    shown = [call("best", name, "--storage", where)[1] for name, where in (("small", there), ("again", target))]
    assert shown[0] == shown[1]


@pytest.mark.slow
def test_a_copy_that_was_interrupted_is_continued_as_the_study_would_be(
    study_file: Write, url: str, call: Call, tmp_path: Path
) -> None:
    path, target = study_file(), f"sqlite:///{tmp_path}/copy.db"
    assert call("run", path, "--storage", url, "--trials", 11)[0] == 0
    assert call("copy", "small", "--storage", url, "--to", target)[0] == 0
    assert call("run", path, "--storage", url)[0] == call("run", path, "--storage", target)[0] == 0
    rest = [
        [trial.user_attrs["candidate"] for trial in Study.load(path, storage=where).trials()] for where in (url, target)
    ]
    assert rest[0] == rest[1]
    assert len(rest[0]) == 14


@pytest.mark.parametrize("worker", ["this", "another machine's"])
def test_nothing_is_done_to_a_study_at_which_a_worker_works(
    worker: str, there: str, call: Call, tmp_path: Path
) -> None:
    run_a_trial(there, this_worker() if worker == "this" else "far.example:77:5")
    target = f"sqlite:///{tmp_path}/copy.db"
    for words in (("rm", "small", "--yes"), ("rename", "small", "big"), ("copy", "small", "--to", target)):
        code, out, err = call(*words, "--storage", there)
        assert (code, out, names(there)) == (2, "", {"small"})
        host, process, _ = (this_worker() if worker == "this" else "far.example:77:5").rsplit(":", 2)
        assert f"nobody may work at the study 'small', and process {process} on {host} runs trial 14" in err
    assert not (tmp_path / "copy.db").exists()


def test_a_study_whose_worker_died_can_be_moved(there: str, call: Call) -> None:
    host, process, start = this_worker().rsplit(":", 2)
    run_a_trial(there, f"{host}:{process}:not-{start}")
    assert call("rename", "small", "big", "--storage", there)[0] == 0
    renamed = find_study(open_storage(there), "big")
    assert renamed is not None
    assert len(renamed.get_trials(states=(TrialState.RUNNING,))) == 1
