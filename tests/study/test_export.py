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
from autodiffusion_opt.sampling.schedule import accepted, install_schedule
from autodiffusion_opt.study.export import plain_lists

REPOSITORY = Path(__file__).parent.parent.parent
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
    result = CliRunner().invoke(app, ["export", "tiny", "-o", str(folder / "out"), "--storage", url, "--json"])
    assert json.loads(result.stdout)["files"] == ["candidate.json", "README.md", "sample.py", "plain.json"]
    return folder / "out"


def test_the_exported_script_makes_an_image(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    runpy.run_path(str(exported / "sample.py"))
    assert (exported / "image.png").is_file()
    assert len((exported / "sample.py").read_text().splitlines()) <= 10


def test_the_exported_numbers_are_the_studys(exported: Path) -> None:
    written = json.loads((exported / "candidate.json").read_text())
    readme = (exported / "README.md").read_text()
    assert f"**{written['source']['values']['fid']:.4g}**" in readme
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
    plain = plain_lists(scheduler, UNEVEN)
    assert set(plain) <= {TAKES.get(name)}
    if name in ("DDPMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"):
        assert plain  # these do take it
    if plain:
        ours = copy.deepcopy(scheduler)
        install_schedule(ours, UNEVEN.times)
        ours.set_timesteps(4)
        scheduler.set_timesteps(**plain)
        np.testing.assert_allclose(np.asarray(scheduler.timesteps), np.asarray(ours.timesteps), rtol=1e-5)


def test_the_exported_script_loads_the_model_as_the_study_did(tmp_path: Path, digits: Any) -> None:
    from autodiffusion_opt.study.config import load_study_config
    from autodiffusion_opt.study.export import _script

    changes = ["pipeline.dtype=bfloat16", "pipeline.variant=fp16", "pipeline.revision=main", "pipeline.call.eta=0.5"]
    script = _script(load_study_config("digits-4", changes), digits, UNEVEN)
    assert (
        "ado.load_pipeline('digits', scheduler='DDIMScheduler', revision='main', variant='fp16', dtype='bfloat16')"
        in script
    )
    assert "pipeline(eta=0.5, num_inference_steps=4)" in script


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


def test_layers_prints_the_table_of_a_study_and_of_a_model() -> None:
    for name in ("digits-4", "digits"):
        rows = json.loads(CliRunner().invoke(app, ["layers", name, "--json"], catch_exceptions=False).stdout)
        assert [row["index"] for row in rows] == list(range(18))
        assert sum(row["kind"] == "residual" for row in rows) == 12
        assert 0.5 < sum(row["share"] for row in rows) < 1
    assert "mid_block.attentions.0" in CliRunner().invoke(app, ["layers", "digits"]).stdout
