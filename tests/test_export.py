"""What is shipped: exported folders, plain lists, the published candidates, the table of layers."""

from __future__ import annotations

import copy
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import autodiffusion_opt as ado
from autodiffusion_opt.cli import app
from autodiffusion_opt.export import plain_lists
from autodiffusion_opt.sampling.schedule import accepted, install_schedule
from autodiffusion_opt.space import ModelInfo
from autodiffusion_opt.space.baselines import ays
from autodiffusion_opt.space.definitions import TimeStepsConfig

REPOSITORY = Path(__file__).parent.parent
PUBLISHED = sorted((REPOSITORY / "studies" / "candidates").glob("*.json"))
UNEVEN = ado.Candidate.from_time_steps([901, 733, 404, 58])
# What diffusers' own set_timesteps takes, as a list; the rest has none.
TAKES = {
    "DDPMScheduler": "timesteps",
    "DPMSolverMultistepScheduler": "timesteps",
    "DPMSolverSinglestepScheduler": "timesteps",
    "EulerDiscreteScheduler": "timesteps",
    "HeunDiscreteScheduler": "timesteps",
    "FlowMatchEulerDiscreteScheduler": "sigmas",
    "TCDScheduler": "timesteps",
    "LCMScheduler": "timesteps",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, study_text: str) -> Path:
    """The small study with a scheduler that takes plain time steps."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.toml").write_text(study_text.replace('"ddim"', '"ddpm"'))
    url = f"sqlite:///{folder}/studies.db"
    ado.Study.load(folder / "tiny.toml", storage=url).run()
    found = CliRunner().invoke(app, ["export", "tiny", "-o", str(folder / "out"), "--storage", url, "--json"])
    assert json.loads(found.stdout)["files"] == ["candidate.json", "README.md", "sample.py", "plain.json"]
    return folder / "out"


def test_the_exported_script_makes_an_image(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    runpy.run_path(str(exported / "sample.py"))
    assert (exported / "image.png").is_file()
    assert len((exported / "sample.py").read_text().splitlines()) <= 10


def test_the_exported_numbers_are_the_studys(exported: Path) -> None:
    written = json.loads((exported / "candidate.json").read_text())
    readme = (exported / "README.md").read_text()
    assert f"**{written['source']['value']:.4g}**" in readme
    assert all(f"| {name} |" in readme for name in ("leading", "trailing", "quadratic"))
    plain = json.loads((exported / "plain.json").read_text())
    assert plain == {"timesteps": [int(t) for t in ado.Candidate.load(exported / "candidate.json").times]}


@pytest.mark.filterwarnings("ignore:__array")  # diffusers' DEIS and others call NumPy in an old way
@pytest.mark.parametrize("name", accepted())
def test_a_plain_list_gives_an_untouched_scheduler_the_candidates_schedule(name: str) -> None:
    import diffusers

    settings: dict[str, Any] = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    if name == "FlowMatchEulerDiscreteScheduler":
        settings = {"shift": 3.0}
    scheduler = getattr(diffusers, name)(**settings)
    found = plain_lists(scheduler, UNEVEN)
    assert set(found) <= {TAKES.get(name)}
    if name in ("DDPMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"):
        assert found  # these do take it
    if found:
        ours = copy.deepcopy(scheduler)
        install_schedule(ours, UNEVEN.times)
        ours.set_timesteps(4)
        scheduler.set_timesteps(**found)
        np.testing.assert_allclose(np.asarray(scheduler.timesteps), np.asarray(ours.timesteps), rtol=1e-5)


def test_removed_layers_have_no_plain_list() -> None:
    import diffusers

    assert plain_lists(diffusers.DDPMScheduler(), ado.Candidate.from_time_steps([500, 1], [[3], []])) == {}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_candidate_names_its_source_and_applies(path: Path, digits: Any) -> None:
    assert "ICCV 2023" in json.loads(path.read_text())["source"]
    candidate = ado.Candidate.load(path)
    if any(candidate.removed):
        assert sum(58 - len(removed) for removed in candidate.removed) == 571  # of N_max 580
        with pytest.raises(ado.UserError, match="18 layers"):
            ado.apply(digits, candidate)
    else:
        ado.apply(digits, candidate)
        assert list(digits(num_inference_steps=len(candidate.steps), output_type="pt").images.shape) == [1, 1, 8, 8]
    ado.remove(digits)


def test_there_are_the_seven_published() -> None:
    assert len(PUBLISHED) == 7


def test_layers_prints_the_table_of_a_space_and_of_a_model() -> None:
    for name in ("digits-4", "digits"):
        rows = json.loads(CliRunner().invoke(app, ["layers", name, "--json"], catch_exceptions=False).stdout)
        assert [row["index"] for row in rows] == list(range(18))
        assert sum(row["kind"] == "residual" for row in rows) == 12
        assert 0.5 < sum(row["share"] for row in rows) < 1
    assert "mid_block.attentions.0" in CliRunner().invoke(app, ["layers", "digits"]).stdout


def test_a_budget_in_nfe_gives_two_call_solvers_half_the_steps() -> None:
    definition = TimeStepsConfig.model_validate({"pipeline": {"model": "digits"}, "nfe": 7})
    heun = ModelInfo(1000, calls_per_step=2, extra_calls=-1)
    assert (definition.bind(heun).steps, definition.bind(ModelInfo(1000)).steps) == (4, 7)
    with pytest.raises(ValueError, match="steps is missing"):
        TimeStepsConfig.model_validate({"pipeline": {"model": "digits"}})


def test_ays_is_the_published_schedule_at_ten_steps_and_keeps_its_ends_at_others() -> None:
    published = (999.0, 850.0, 736.0, 645.0, 545.0, 455.0, 343.0, 233.0, 124.0, 24.0)
    info = ModelInfo(1000, sigmas=tuple(np.geomspace(0.03, 14.6, 1000)), ays=published)
    np.testing.assert_allclose(ays(info, 10), published, rtol=1e-9)
    five = ays(info, 5)
    assert (round(five[0]), round(five[-1])) == (999, 24)
    assert sorted(five, reverse=True) == list(five)
