"""What a study's file says: resolved, or refused with all that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autodiffusion_opt import UserError
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.study.config import differences, load_study_config
from autodiffusion_opt.study.stored_config import stored_config

Write = Callable[..., Path]


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        load_study_config(str(path))
    return str(error.value)


def test_names_paths_and_tables(study_file: Write, tmp_path: Path) -> None:
    config = load_study_config(str(study_file()))
    assert (config.name, config.trials, config.seed) == ("small", 14, 0)
    assert (config.space.kind, config.objective.images, config.optimizer.kind) == ("time-steps", 20, "evolution")
    assert config.pipeline.model == "digits"
    # The same by name, from the catalogue beside the file, and by path.
    for folder in ("spaces", "objectives", "studies", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "spaces" / "own.toml").write_text('kind = "time-steps"\nsteps = 4\n')
    objective = 'kind = "fid"\nimages = 20\nfeatures = "digits"\nreference = "digits"\n'
    (tmp_path / "other" / "own.toml").write_text(objective)
    path = tmp_path / "studies" / "named.toml"
    (tmp_path / "other" / "pipeline.toml").write_text('model = "digits"\nscheduler = "ddim"\n')
    path.write_text('pipeline = "../other/pipeline.toml"\nspace = "own"\nobjective = "../other/own.toml"\ntrials = 2\n')
    named = load_study_config(str(path))
    assert named.objective == config.objective
    assert named.space == config.space
    assert named.pipeline.scheduler == "ddim"
    path.write_text(
        'pipeline = "digits"\noptimizer = "random"\nspace = "own"\nobjective = "../other/own.toml"\ntrials = 2\n'
    )
    assert load_study_config(str(path)).pipeline.model == "digits"
    assert load_study_config(str(path)).optimizer.kind == "random"
    path.write_text('pipeline = "digits"\nspace = "own"\nobjective = "../other/own.toml"\ntrials = 2\n')
    named = load_study_config(str(path))
    assert named.optimizer.kind == "local"


def test_the_definition_comes_back(study_file: Write) -> None:
    config = load_study_config(str(study_file()))
    again = stored_config(config.name, config.path, config.definition() | {"trials": 14})
    assert again.definition() == config.definition()
    assert again.trials == 14


def test_another_seed_is_another_study(study_file: Write) -> None:
    config = load_study_config(str(study_file()))
    assert config.with_seed(0) is config
    seeded = config.with_seed(3)
    assert (seeded.name, seeded.seed) == ("small-seed3", 3)
    assert differences(config.definition(), seeded.definition()) == ["seed: 0 -> 3"]


def test_where_it_runs_is_not_part_of_what_it_is(study_file: Write) -> None:
    config = load_study_config(str(study_file()))
    assert config.on_device("cuda:1").pipeline.device == "cuda:1"
    assert config.on_device("cuda:1").definition() == config.definition()
    assert load_study_config(str(study_file(trials="trials = 99"))).definition() == config.definition()


def test_everything_else_is(study_file: Write) -> None:
    config = load_study_config(str(study_file()))
    for key, line in {
        "steps": "steps = 5",
        "batch_size": "batch_size = 9",
        "micro_batch": "micro_batch = 9",
        "images": "images = 21",
        "population": "population = 6",
        "seed": "seed = 1",
    }.items():
        (difference,) = differences(config.definition(), load_study_config(str(study_file(**{key: line}))).definition())
        assert difference.split(":")[0].split(".")[-1] == key


def test_differences() -> None:
    old, new = {"a": 1, "b": {"c": 2, "d": 3}, "gone": 0}, {"a": 1, "b": {"c": 2, "d": 4}, "new": {"x": 1}}
    assert differences(old, new) == ["b.d: 3 -> 4", "gone: 0 -> None", "new: None -> {'x': 1}"]


WRONG = [
    ("trials", "trials = 0", "trials: should be greater than or equal to 1; got 0"),
    ("trials", "trails = 3", "key trails is unknown; it must be one of:"),
    ("trials", "trails = 3", "Did you mean 'trials'?"),
    ("trials", "trails = 3", "trials is missing"),
    ("seed", "seed = -1", "seed: should be greater than or equal to 0; got -1"),
    ("steps", "steps = 0", "steps: should be greater than or equal to 1; got 0"),
    ("steps", "step = 4", "Did you mean 'steps'?"),
    ("steps", 'steps = "four"', "got 'four'"),
    ("batch_size", "batch_sise = 10", "pipeline: key batch_sise is unknown"),
    ("batch_size", "batch_sise = 10", "Did you mean 'batch_size'?"),
    ("batch_size", "batch_size = 0", "pipeline: batch_size: should be greater than or equal to 1; got 0"),
    ("batch_size", 'dtype = "float31"', "Did you mean 'float32'?"),
    ("images", "images = 1", "images: should be greater than or equal to 2; got 1"),
    ("images", "images = nan", "images"),
    ("features", "feature = 1", "Did you mean 'features'?"),
    ("population", "population = 3", "mutations + crossovers must be at most population, 3; got 2 + 2"),
    ("population", "populaton = 5", "Did you mean 'population'?"),
]


@pytest.mark.parametrize(("key", "line", "message"), WRONG)
def test_messages(key: str, line: str, message: str, study_file: Write) -> None:
    path = study_file(**{key: line})
    text = refusal(path)
    assert message in text
    assert str(path) in text


@pytest.mark.parametrize(
    ("old", "new", "near"),
    [("time-steps", "time-step", "time-steps"), ("fid", "fidd", "fid"), ("evolution", "evolutoin", "evolution")],
)
def test_a_misspelt_kind(old: str, new: str, near: str, study_file: Write) -> None:
    path = study_file()
    path.write_text(path.read_text().replace(f'kind = "{old}"', f'kind = "{new}"'))
    assert f"got {new!r}. Did you mean {near!r}?" in refusal(path)


def test_a_kind_that_is_missing_or_no_text(study_file: Write) -> None:
    path = study_file()
    text = path.read_text()
    path.write_text(text.replace('kind = "fid"\n', ""))
    kinds = ", ".join(sorted(METRICS))
    assert f"objective: kind is missing; it must be one of: {kinds}" in refusal(path)
    path.write_text(text.replace('kind = "fid"', "kind = [1]"))
    assert f"the kind of metric must be one of: {kinds}; got [1]" in refusal(path)


@pytest.mark.parametrize("name", ["four-stps", "spaces/four-stps.toml"])
def test_a_misspelt_space(name: str, study_file: Write, tmp_path: Path) -> None:
    path = tmp_path / "named.toml"
    path.write_text(f'pipeline = "digits"\nspace = "{name}"\nobjective = "digits-fid"\ntrials = 2\n')
    assert "Did you mean 'four-steps'?" in refusal(path)


def test_all_errors_at_once(tmp_path: Path) -> None:
    for folder in ("spaces", "objectives", "studies"):
        (tmp_path / folder).mkdir()
    (tmp_path / "spaces" / "s.toml").write_text('kind = "time-steps"\nstep = 4\nsteps = 0\n')
    (tmp_path / "objectives" / "o.toml").write_text('kind = "fid"\nimages = 1\nfeatures = "digits"\n')
    path = tmp_path / "studies" / "all.toml"
    path.write_text(
        'space = "s"\nobjective = "o"\ntrails = 5\nseed = -1\n[pipeline]\nmodel = ""\n[optimizer]\nkind = "evolutin"\n'
    )
    text = refusal(path)
    for part in (
        "s.toml: key step is unknown",
        "s.toml: steps: should be",
        "all.toml: pipeline: model: ",
        "o.toml: images: should be",
        "o.toml: reference is missing",
        "all.toml: optimizer: the kind of optimizer must be one of",
        "all.toml: key trails is unknown",
        "all.toml: trials is missing",
        "all.toml: seed: should be",
    ):
        assert part in text


@pytest.mark.parametrize("given", ["3", "[1]", "true"])
def test_a_part_that_is_neither_name_nor_table(given: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(f'pipeline = "digits"\nspace = {given}\nobjective = "digits-fid"\ntrials = 2\n')
    assert "space" in refusal(path)


def test_a_stored_definition_that_lacks_a_part_is_refused(study_file: Write) -> None:
    config = load_study_config(str(study_file()))
    with pytest.raises(UserError, match=r"x\.json: the definition must have pipeline, objective"):
        stored_config("x", "x.json", {"space": config.definition()["space"]})


def test_a_pipeline_in_the_space_is_told_where_it_belongs(study_file: Write) -> None:
    path = study_file()
    path.write_text(path.read_text().replace("[pipeline]", "[space.pipeline]"))
    text = refusal(path)
    assert "space: [pipeline] is a table of the study, beside [space]" in text
    assert "pipeline is missing" in text


def test_a_key_is_changed_for_one_run(study_file: Write) -> None:
    path = str(study_file())
    config = load_study_config(path, ["space.steps=6", 'pipeline.scheduler="ddpm"', "pipeline.call.eta=0.5"])
    assert (config.space.steps, config.pipeline.scheduler, config.pipeline.call) == (6, "ddpm", {"eta": 0.5})
    assert config.name == 'small+space.steps=6+pipeline.scheduler="ddpm"+pipeline.call.eta=0.5'
    # Text need not be quoted, and what is no part of the definition leaves the name alone.
    same = load_study_config(path, ["pipeline.device=cuda:1", "trials=3", "space.steps=4"])
    assert (same.name, same.pipeline.device, same.trials) == ("small", "cuda:1", 3)
    both = load_study_config(path, ["pipeline.device=cuda:1", "seed=3", "space.steps=6"])
    assert (both.name, both.seed) == ("small+space.steps=6-seed3", 3)
    assert load_study_config(path, ["seed=3"]).name == load_study_config(path).with_seed(3).name == "small-seed3"


def test_of_two_changes_of_a_key_the_later_counts_and_names_the_study(study_file: Write) -> None:
    config = load_study_config(str(study_file()), ["space.steps=6", "pipeline.call.eta=0.5", "space.steps=5"])
    assert config.space.steps == 5
    assert config.name == "small+pipeline.call.eta=0.5+space.steps=5"


def test_a_key_of_a_named_part_is_changed_in_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "named.toml"
    path.write_text('pipeline = "digits"\nspace = "four-steps"\nobjective = "digits-fid"\ntrials = 2\n')
    config = load_study_config(str(path), ["space.steps=6", "objective.images=50", "optimizer=random"])
    assert (config.space.steps, config.objective.images, config.optimizer.kind) == (6, 50, "random")
    assert load_study_config(str(path)).space.steps == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space.steps=0", "space: steps: should be greater than or equal to 1; got 0"),
        ("space.step=3", "Did you mean 'steps'?"),
        ("spce.steps=3", "Did you mean 'space'?"),
        ("steps", "--set must be key=value"),
        ("=3", "--set must be key=value"),
        ("trials=many", "trials: should be a valid integer"),
        ("trials.more=3", "trials is no table; it is 14"),
        ("optimizer=nothing", "the kind of optimizer must be one of"),
    ],
)
def test_a_wrong_change_is_refused_like_a_wrong_file(text: str, message: str, study_file: Write) -> None:
    with pytest.raises(UserError) as error:
        load_study_config(str(study_file()), [text])
    assert message in str(error.value)
