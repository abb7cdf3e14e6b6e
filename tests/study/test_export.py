"""What is shipped: exported folders, plain lists, the published candidates, the table of layers."""

from __future__ import annotations

import copy
import inspect
import json
import runpy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from marks import slow_but
from peers import pipelines
from peers.samples import load
from peers.scheduler_cases import CASES
from peers.schedulers import Case
from PIL import Image

import autodiffusion_opt as ado
from autodiffusion_opt.cli import app
from autodiffusion_opt.sampling.conditions import Labels
from autodiffusion_opt.sampling.generate import ImageSampler
from autodiffusion_opt.sampling.load import with_scheduler_of
from autodiffusion_opt.sampling.plain_lists import plain_lists
from autodiffusion_opt.sampling.schedule import accepted, install_schedule
from autodiffusion_opt.sampling.schedule.specs import spec_of
from autodiffusion_opt.study.config import load_study_config
from autodiffusion_opt.study.export import _listed, _script, scheduler_config

REPOSITORY = Path(__file__).parent.parent.parent
PUBLISHED = sorted((REPOSITORY / "studies" / "candidates").glob("*.json"))
UNEVEN = ado.Candidate.from_time_steps([901, 733, 404, 58])
FILES = ["candidate.json", "README.md", "scheduler_config.json", "sample.py", "plain.json"]
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
    "FlowMatchLCMScheduler": "timesteps",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, study_text: str) -> Path:
    """The small study with a scheduler that takes plain time steps."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.toml").write_text(study_text.replace('"ddim"', '"ddpm"'))
    url = f"sqlite:///{folder}/studies.db"
    ado.Study.load(folder / "tiny.toml", storage=url).run()
    result = CliRunner().invoke(app, ["export", "tiny", "-o", str(folder / "out"), "--storage", url, "--json"])
    assert json.loads(result.stdout)["files"] == FILES
    return folder / "out"


def test_the_exported_script_makes_an_image(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    runpy.run_path(str(exported / "sample.py"))
    assert (exported / "image.png").is_file()
    assert len((exported / "sample.py").read_text().splitlines()) <= 25


def test_the_exported_numbers_are_the_studys(exported: Path) -> None:
    written = json.loads((exported / "candidate.json").read_text())
    readme = (exported / "README.md").read_text()
    assert 'pipeline.scheduler = DDPMScheduler.from_pretrained(".")' in readme
    assert f"**{written['source']['values']['fid']:.4g}**" in readme
    assert all(f"\n| {name} " in readme for name in ("own", "trailing", "quadratic"))
    plain = json.loads((exported / "plain.json").read_text())
    assert plain == {"timesteps": [int(t) for t in ado.Candidate.load(exported / "candidate.json").times]}


@pytest.mark.filterwarnings("ignore:__array")  # diffusers' DEIS and others call NumPy in an old way
@pytest.mark.parametrize("name", accepted())
def test_a_plain_list_gives_an_untouched_scheduler_the_candidates_schedule(name: str) -> None:
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


@pytest.mark.filterwarnings("ignore:__array")
@pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_whole_configuration_makes_the_scheduler_again_on_any_models_own(case: Case) -> None:
    takes_betas = "trained_betas" in inspect.signature(getattr(diffusers, case.name).__init__).parameters
    betas = {"trained_betas": np.linspace(1e-4, 0.02, 1000).tolist()} if takes_betas else {}
    scheduler = case.make(**betas)
    settings = json.loads(json.dumps(scheduler_config(scheduler)))
    own = diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_end=0.012, steps_offset=1, skip_prk_steps=True)
    again = with_scheduler_of(own, type(scheduler).__name__, settings)
    assert scheduler_config(again) == scheduler_config(scheduler)
    assert set(settings) == set(inspect.signature(type(scheduler).__init__).parameters) - {"self"}
    assert spec_of(again)


def test_a_configuration_of_arrays_is_written_as_lists_and_read_by_diffusers(exported: Path) -> None:
    scheduler = diffusers.DDIMScheduler(trained_betas=np.linspace(1e-4, 0.02, 10), num_train_timesteps=10)
    text = json.dumps(scheduler_config(scheduler), default=_listed)
    assert json.loads(text)["trained_betas"] == np.linspace(1e-4, 0.02, 10).tolist()
    again = diffusers.DDPMScheduler.from_pretrained(exported)
    assert scheduler_config(again) == json.loads((exported / "scheduler_config.json").read_text())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of colour images."""
    folder = tmp_path_factory.mktemp("reference")
    noise = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def exported_study(kind: str, folder: Path, reference: Path, settings: str) -> Path:
    """The folder to which a study of three trials was exported; its model is named relative to the study's file."""
    (folder / "model").symlink_to(pipelines.saved(kind))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    conditions = 'kind = "none"'
    if kind in pipelines.TEXT:
        conditions = f'kind = "prompts"\nfile = "prompts.txt"\nnegative_prompt = {json.dumps(NEGATIVE)}'
    elif kind in pipelines.CLASSES:
        conditions = 'kind = "labels"\nclasses = [2, 0]'
    call = "\n".join(f"{key} = {json.dumps(value)}" for key, value in pipelines.CALLS.get(kind, {}).items())
    (folder / "tiny.toml").write_text(f"""
trials = 3
optimizer = "random"
[space]
kind = "time-steps"
steps = 3
[pipeline]
model = "model"
micro_batch = 2
{settings}
[pipeline.call]
{call}
[objective]
kind = "fid"
images = 2
features = "pixels"
reference = "{reference}"
[objective.conditions]
{conditions}
""")
    study = ado.Study.load(folder / "tiny.toml", storage=f"sqlite:///{folder}/studies.db")
    study.run()
    study.export(folder / "out")
    return folder / "out"


PROMPTS = ('a "cat" \\ and a dog’s', "rain")
NEGATIVE = 'ugly """'
# Kind of pipeline -> what its study says of the pipeline, and what load_pipeline needs for the same.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ('scheduler = "ddim"', {"scheduler": "ddim"}),
    "stable_diffusion": ('scheduler = "plms"', {"scheduler": "plms"}),
    "sdxl": (
        'scheduler = "dpmsolver++"\nscheduler_settings = {use_karras_sigmas = true}\ndtype = "bfloat16"',
        {"scheduler": "dpmsolver++", "scheduler_settings": {"use_karras_sigmas": True}, "dtype": "bfloat16"},
    ),
    "sd3": ("scheduler_settings = {shift = 2.0}", {"scheduler_settings": {"shift": 2.0}}),
    "flux": ("", {}),
    "dit": ('scheduler = "unipc"', {"scheduler": "unipc"}),
    "adm": ("", {}),
    "consistency": ("", {}),
}


@pytest.mark.filterwarnings("ignore:__array")
@pytest.mark.parametrize("kind", slow_but(KINDS, "sd3"))
def test_the_exported_script_makes_the_candidates_image_wherever_it_is_run(
    kind: str, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, loaded = KINDS[kind]
    out = exported_study(kind, tmp_path, reference, settings)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    runpy.run_path(str(out / "sample.py"))
    found = Image.open(tmp_path / "elsewhere" / "image.png")

    pipeline = ado.apply(load(kind, **loaded), out / "candidate.json")
    given: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), **pipelines.CALLS.get(kind, {})}
    if kind in pipelines.TEXT:
        given |= {"prompt": PROMPTS[0], "negative_prompt": NEGATIVE}
    if kind in ("dit", "consistency"):
        given["class_labels"] = [Labels([2, 0]).label(0)]
    labels = Labels([2, 0])
    labels.arguments(pipeline, [0])
    with labels.around(pipeline) if kind == "adm" else nullcontext():
        wanted = pipeline(**given, num_inference_steps=3).images[0]
    assert np.array_equal(np.asarray(found), np.asarray(wanted))


def test_a_candidate_that_was_saved_with_the_model_is_left_out_of_the_exported_script(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ado.apply(load("ddpm"), ado.Candidate.from_time_steps([980.5, 500.5]))  # between integers: nothing for LCM
    own.save_pretrained(tmp_path / "saved")
    monkeypatch.setattr(pipelines, "saved", lambda kind: tmp_path / "saved")
    out = exported_study("ddpm", tmp_path, reference, 'scheduler = "lcm"')
    runpy.run_path(str(out / "sample.py"))
    assert Path("image.png").is_file()


def written_script(config: Any, pipeline: Any) -> str:
    script = _script(config, ImageSampler(pipeline, call=config.pipeline.call), 4)
    compile(script, "sample.py", "exec")
    return script


def test_the_exported_script_loads_the_model_as_the_study_did(digits: Any, tmp_path: Path) -> None:
    changes = ["pipeline.dtype=bfloat16", "pipeline.variant=fp16", "pipeline.revision=main", "pipeline.call.eta=0.5"]
    script = written_script(load_study_config("digits-4", changes), digits)
    assert "    'digits',\n    scheduler='DDIMScheduler',\n" in script
    assert "    revision='main',\n    variant='fp16',\n    dtype='bfloat16',\n)" in script
    assert "    batch_size=1,\n    eta=0.5,\n    num_inference_steps=4,\n" in script
    # A hub id stays as it is; a folder is named so that it is found from anywhere.
    assert "    'owner/name',\n" in written_script(load_study_config("digits-4", ["pipeline.model=owner/name"]), digits)
    (tmp_path / "own").symlink_to(pipelines.saved("ddim"))
    path = tmp_path / "study.toml"
    path.write_text('pipeline = "./own"\nspace = "four-steps"\nobjective = "digits-fid"\ntrials = 2')
    assert "with_candidate" not in written_script(load_study_config(str(path)), digits)
    named = replace(load_study_config(str(path)), name='a\n"""b\\')  # any text is a name
    assert f"    {str(pipelines.saved('ddim').resolve())!r},\n" in written_script(named, digits)


@pytest.mark.filterwarnings("ignore:__array")
@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_an_end_before_the_schedulers_own_is_in_no_plain_list(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    assert plain_lists(scheduler, UNEVEN)
    assert plain_lists(scheduler, replace(UNEVEN, end_time=20.0)) == {}


def test_partial_steps_have_no_plain_list() -> None:
    steps = (ado.Step(500), ado.Step(1, branch=0))
    assert plain_lists(diffusers.DDPMScheduler(), ado.Candidate.from_time_steps([500, 1]))
    assert plain_lists(diffusers.DDPMScheduler(), ado.Candidate(steps)) == {}


def test_removed_layers_have_no_plain_list() -> None:
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


def test_a_candidates_file_is_exported_for_comfyui_and_what_that_leaves_out_is_measured(tmp_path: Path) -> None:
    steps = (ado.Step(900), ado.Step(400, removed=(3,)), ado.Step(100, branch=0))
    (tmp_path / "given.json").write_text(ado.Candidate(steps).to_json())
    given = ["export", str(tmp_path / "given.json"), "--study", "digits-4", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*given, "--for", "comfyui", "--json"])
    told = json.loads(result.stdout)
    written = json.loads((tmp_path / "out" / "comfyui.json").read_text())
    assert told["files"] == ["comfyui.json"]
    assert told["engine"] == "comfyui"
    assert written["sigmas"] == told["settings"]["sigmas"]
    assert len(written["sigmas"]) == 4
    assert "layer sets" in told["remarks"][0]
    assert "partial steps" in told["remarks"][1]
    assert 0 < told["difference"]["mean"] < told["difference"]["greatest"] <= 1
    refused = CliRunner().invoke(app, given)
    assert refused.exit_code == 1
    assert "is a candidate's file" in str(refused.exception)


def test_a_candidates_file_is_exported_for_cache_dit_and_stdout_is_json_alone(tmp_path: Path) -> None:
    pytest.importorskip("cache_dit")
    steps = (ado.Step(900), ado.Step(700, branch=1), ado.Step(400))
    (tmp_path / "given.json").write_text(ado.Candidate(steps).to_json())
    given = ["export", str(tmp_path / "given.json"), "--study", "dit-4", "-o", str(tmp_path / "out")]
    told = json.loads(CliRunner().invoke(app, [*given, "--for", "cache-dit", "--json"]).stdout)
    assert told["files"] == ["cache_dit.yaml", "cache_dit.json", "times.json"]
    assert told["settings"]["same_images"]
    assert "  steps_computation_mask: [1, 0, 1]\n" in (tmp_path / "out" / "cache_dit.yaml").read_text()
