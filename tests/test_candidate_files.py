"""A candidate's file that anybody may have written: a sentence and exit code 2, within a second."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autodiffusion_opt import Candidate, UserError
from autodiffusion_opt.candidate import MOST_LAYERS, MOST_STEPS
from autodiffusion_opt.sampling.apply import install

Call = Callable[..., tuple[int, str, str]]
TIMES = '"steps": [900, 100]'
DEFINITION = {
    "pipeline": {"model": "digits"},
    "space": {"kind": "time-steps", "steps": 2},
    "objective": {"kind": "fid", "images": 10, "features": "digits", "reference": "digits"},
}


def with_source(**changes: Any) -> str:
    """A candidate's file with another definition."""
    return json.dumps({"steps": [900, 100], "source": {"definition": {**DEFINITION, **changes}}})


# The file's text -> part of the message.
WRONG = {
    "nested lists": ("[" * 100_000, "nested too deeply"),
    "nested objects": ('{"steps":' * 100_000, "nested too deeply"),
    "nested source": ('{"steps": [900], "source": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "long integer": (f"[{'9' * 5000}]", "integers must have at most 4,300 digits"),
    "long layer": (f'{{"steps": [{{"time": 1, "removed": [{"9" * 5000}]}}]}}', "at most 4,300 digits"),
    "long format": (f'{{{TIMES}, "format": {"9" * 4000}}}', "format must be 1"),
    "many steps": (f"[{', '.join(map(str, range(300_000)))}]", "at most 10,000; got 300,000"),
    "many layers": (
        f'{{"steps": [{{"time": 1, "removed": [{", ".join(map(str, range(300_000)))}]}}]}}',
        "at most 10,000 layers; got 300,000",
    ),
    "many mistakes": (f"[{'-1, ' * 9_000}-1]", "and 8991 more mistakes"),
    "a long key": (f'{{{TIMES}, "{"x" * 100_000}": 1}}', "a candidate's key must be one of"),
    "escapes": (f'{{{TIMES}, "\\u001b[31m": 1}}', "\\x1b[31m"),
    "no source": (f"{{{TIMES}}}", "does not say which model it is for"),
    "source text": (f'{{{TIMES}, "source": "x"}}', "does not say which model it is for"),
    "definition list": (f'{{{TIMES}, "source": {{"definition": []}}}}', "must be a table; got []"),
    "definition empty": (f'{{{TIMES}, "source": {{"definition": {{}}}}}}', "must have pipeline, space, objective"),
    "pipeline list": (with_source(pipeline=[1]), "pipeline: must be a table; got [1]"),
    "space number": (with_source(space=4), "space: must be a table; got 4"),
    "objective text": (with_source(objective="fid"), "objective: must be a table; got 'fid'"),
    "optimizer none": (with_source(optimizer=None), "optimizer of this study came from Python"),
    "trials text": (with_source(trials="many"), "trials: should be a valid integer"),
    "trials list": (with_source(trials=[]), "trials: should be a valid integer"),
    "seed negative": (with_source(seed=-1), "seed: should be greater than or equal to 0"),
    "ranking number": (with_source(ranking=7), "ranking: should be a valid tuple"),
    "ranking text": (with_source(ranking=[["a"]]), "ranking.0.0: should be a valid integer"),
    "folders list": (with_source(folders=[]), "folders: should be a valid dictionary"),
    "folder number": (with_source(folders={"pipeline": 3}), "folders.pipeline: should be a valid string"),
    "file number": (with_source(file=7), "file: should be a valid string"),
    "file with a NUL": (with_source(file="a\0b"), "NUL"),
    "long file": (with_source(file="x" * 10_000), "File name too long"),
    "long model": (with_source(pipeline={"model": "x" * 100_000}), "File name too long"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_told_in_a_sentence_within_a_second(name: str, call: Call) -> None:
    text, expected = WRONG[name]
    Path("wrong.json").write_text(text)
    began = time.process_time()
    code, out, err = call("verify", "wrong.json", "--images", 2, "--repeats", 1)
    assert time.process_time() - began < 1
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err) <= 2000


@pytest.mark.parametrize(
    "values", ["x", 7, [], {}, {"fid": "x"}, {"fid": None}, {"fid": [1]}, {"fid": 1.0, "kid": 2.0}]
)
def test_values_of_the_search_that_are_no_number_are_not_told(values: object) -> None:
    from autodiffusion_opt.study.results import resolve

    content = json.loads(with_source())
    content["source"]["values"] = values
    Path("odd.json").write_text(json.dumps(content))
    assert resolve("odd.json", None, None).searched is None


def test_as_many_steps_as_are_allowed_are_read_in_little_time() -> None:
    began = time.process_time()
    assert len(Candidate.from_dict([step / 10 for step in range(MOST_STEPS)]).steps) == MOST_STEPS
    assert time.process_time() - began < 1
    with pytest.raises(UserError, match="at most 10,000 steps; got 10,001"):
        Candidate.from_time_steps(range(MOST_STEPS + 1))


def test_ten_thousand_layers_are_refused_within_a_second(digits: Any) -> None:
    with pytest.raises(UserError, match="18 layers, 0 to 17"), install(digits, Candidate.from_time_steps([9], [[99]])):
        pass  # the denoiser's layers are counted now
    candidate = Candidate.from_time_steps([900], [range(MOST_LAYERS)])
    began = time.process_time()
    with pytest.raises(UserError, match=r"18 layers, 0 to 17; got 18, 19.* more") as error, install(digits, candidate):
        pass
    assert time.process_time() - began < 1
    assert len(str(error.value)) < 1500
