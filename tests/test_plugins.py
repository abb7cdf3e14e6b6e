"""Kinds of third parties: registered by a call or found by entry points, named in a TOML file, refused where wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import pytest
import torch
from marks import slow_but

import autodiffusion_opt as ado
from autodiffusion_opt import Study, UserError, config
from autodiffusion_opt.objective import METRICS
from autodiffusion_opt.objective.features import FEATURES
from autodiffusion_opt.optimizer import OPTIMIZERS
from autodiffusion_opt.space import SPACES, TimeStepsConfig
from autodiffusion_opt.study.config import load_study_config

REGISTRIES = {"metrics": METRICS, "features": FEATURES, "optimizers": OPTIMIZERS, "spaces": SPACES}

STUDY = """
trials = {trials}
[pipeline]
model = "digits"
scheduler = "ddim"
device = "cpu"
batch_size = 25
micro_batch = 25
[space]
kind = "{space}"
steps = 4
[objective]
kind = "{metric}"
images = 25
features = "{features}"
reference = "digits"
{keys}
[optimizer]
kind = "{optimizer}"
"""


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))  # type: ignore[attr-defined]


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points that are installed, beside none."""
    installed: list[EntryPoint] = []
    monkeypatch.setattr(config, "entry_points", lambda group: [one for one in installed if one.group == group])
    yield installed
    sys.modules.pop("third_party", None)


class InkConfig(ado.MetricConfig):
    """``kind = "ink"``."""

    power: float = 1.0


class Ink(ado.Metric):
    """How far the mean feature is from the reference's; less is better."""

    Config: ClassVar[type[ado.MetricConfig]] = InkConfig

    def __init__(self, config: ado.MetricConfig, reference: Any) -> None:
        super().__init__(config, reference)
        assert isinstance(config, InkConfig)
        self.power = config.power
        self.wanted = reference.statistics.mean
        self.blocks: list[Any] = []

    def add(self, features: Any) -> None:
        self.blocks.append(features)

    def value(self) -> float:
        return float(np.abs(np.concatenate(self.blocks).mean(0) - self.wanted).mean() ** self.power)


class MostInk(Ink):
    """More is better."""

    direction = "maximize"


class Corners:
    """The four corners of an image."""

    identity = "corners-1"

    def __call__(self, images: torch.Tensor) -> Any:
        return images[:, 0, :: images.shape[2] - 1, :: images.shape[3] - 1].flatten(1).float().numpy()


class LateConfig(ado.OptimizerConfig):
    """``kind = "late"``: any sampler of Optuna's."""

    def sampler(self, space: ado.Space, seed: int) -> Any:
        return optuna.samplers.RandomSampler(seed=seed)


class EvenConfig(TimeStepsConfig):
    """``kind = "even"``: as time-steps."""

    kind: str = "even"  # type: ignore[assignment]


def corners(device: torch.device, weights: Path | None) -> Corners:
    return Corners()


ENTRIES: dict[str, tuple[str, Any, Any]] = {
    # group -> name, entry, the function that registers it
    "metrics": ("ink", Ink, ado.register_metric),
    "features": ("corners", corners, ado.register_features),
    "optimizers": ("late", LateConfig, ado.register_optimizer),
    "spaces": ("even", EvenConfig, ado.register_space),
}


def write_study(folder: Path, **changes: Any) -> Path:
    """A small study on digits."""
    usual: dict[str, Any] = {
        "trials": 10,
        "space": "time-steps",
        "metric": "fid",
        "features": "pixels",
        "optimizer": "random",
        "keys": "",
    }
    path = folder / "mine.toml"
    path.write_text(STUDY.format(**(usual | changes)))
    return path


KEYS = {"metrics": "metric", "features": "features", "optimizers": "optimizer", "spaces": "space"}


@pytest.mark.parametrize("group", slow_but(ENTRIES, "metrics"))
@pytest.mark.parametrize("way", slow_but(["registered", "entry point"], "registered"))
def test_a_study_that_names_a_third_partys_kind_runs(
    group: str, way: str, tmp_path: Path, url: str, plugins: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, entry, register = ENTRIES[group]
    path = write_study(tmp_path, **{KEYS[group]: name})
    if group != "features":  # features are looked up with the model, when torch is there
        with pytest.raises(UserError, match=f"must be one of: .*; got '{name}'"):
            load_study_config(str(path))
    if way == "registered":
        register(name, entry)
    else:
        (tmp_path / "third_party.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        module = __import__("third_party")
        module.thing = entry
        plugins.append(EntryPoint(name, "third_party:thing", f"autodiffusion_opt.{group}"))
    results = Study.load(path, storage=url).run(progress=False)
    assert len(results) == 10
    assert all(np.isfinite(one.value) for one in results)
    assert {"metrics": list(results[0].values) == ["ink"]}.get(group, True)


@pytest.mark.slow
def test_all_four_kinds_of_third_parties_go_together(tmp_path: Path, url: str) -> None:
    for name, entry, register in ENTRIES.values():
        register(name, entry)
    given = {"space": "even", "metric": "ink", "features": "corners", "optimizer": "late", "keys": "power = 2.0"}
    study = Study.load(write_study(tmp_path, **given), storage=url)
    found = study.run(progress=False)
    assert [one.value for one in found] == sorted(one.value for one in found)
    assert study.problem.objective.directions == {"ink": "minimize"}
    half = Study.load(write_study(tmp_path, **(given | {"keys": "power = 1.0"})), storage=f"sqlite:///{tmp_path}/b.db")
    first = next(one for one in half.run(1, progress=False))
    assert first.value == pytest.approx(next(one for one in found if one.trial == 0).value ** 0.5)


@pytest.mark.slow
def test_a_metric_that_is_maximised_is_searched_upwards(tmp_path: Path, url: str) -> None:
    ado.register_metric("most-ink", MostInk)
    found = Study.load(write_study(tmp_path, metric="most-ink"), storage=url).run(progress=False)
    values = [one.value for one in found]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


def test_an_own_key_of_a_registered_kind_is_checked_as_those_of_ours(tmp_path: Path) -> None:
    ado.register_metric("ink", Ink)
    with pytest.raises(UserError, match="Did you mean 'power'"):
        load_study_config(str(write_study(tmp_path, metric="ink", keys="powr = 2.0")))


# What is refused.


@pytest.mark.parametrize(
    ("key", "wrong", "meant"),
    [("metric", "fidd", "fid"), ("space", "time-step", "time-steps"), ("optimizer", "evolutoin", "evolution")],
)
def test_an_unknown_kind_is_refused_at_load_with_the_nearest_match(
    key: str, wrong: str, meant: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"must be one of: .*; got '{wrong}'.* Did you mean '{meant}'"):
        load_study_config(str(write_study(tmp_path, **{key: wrong})))


def test_an_installed_kind_is_among_those_listed_and_matched(tmp_path: Path, plugins: list[EntryPoint]) -> None:
    plugins.append(EntryPoint("sharpness", "no_such_module:Thing", "autodiffusion_opt.metrics"))
    with pytest.raises(UserError, match=r"rfid, sharpness, ssim; got 'sharpnes'.* Did you mean 'sharpness'"):
        load_study_config(str(write_study(tmp_path, metric="sharpnes")))
    assert list(METRICS)[:2] == ["fid", "kid"]
    assert list(METRICS)[-1] == "sharpness"
    assert len(METRICS) == len(list(METRICS))


def test_an_installed_kind_is_not_imported_before_it_is_named(plugins: list[EntryPoint]) -> None:
    plugins.append(EntryPoint("sharpness", "no_such_module:Thing", "autodiffusion_opt.metrics"))
    assert METRICS["fid"].__name__ == "Fid"
    with pytest.raises(UserError, match="the metric 'sharpness' of no_such_module:Thing cannot be loaded: No module"):
        METRICS["sharpness"]


def test_the_group_of_an_entry_point_is_that_of_its_registry(plugins: list[EntryPoint]) -> None:
    for group, registry in REGISTRIES.items():
        assert registry.group == f"autodiffusion_opt.{group}"
        plugins[:] = [EntryPoint("theirs", "somewhere:thing", f"autodiffusion_opt.{group}")]
        assert {other for other, one in REGISTRIES.items() if "theirs" in list(one)} == {group}


class NoValue(ado.Metric):
    """Not complete."""

    def add(self, features: Any) -> None:
        """Nothing."""


class NoSampler(ado.OptimizerConfig):
    """Not complete."""


class NoSpace(ado.SpaceConfig):
    """Not complete."""


@pytest.mark.parametrize(
    ("register", "wrong", "message"),
    [
        (ado.register_metric, NoValue, "the metric 'mine' must define value"),
        (ado.register_metric, Corners, "must be a subclass of ado.Metric"),
        (ado.register_metric, 3, "must be a subclass of ado.Metric"),
        (ado.register_features, Corners.identity, r"a function \(device, weights\) -> extractor; got 'corners-1'"),
        (ado.register_optimizer, Ink, "must be a subclass of ado.OptimizerConfig"),
        (ado.register_optimizer, NoSampler, "the optimizer 'mine' must define sampler"),
        (ado.register_space, LateConfig, "must be a subclass of ado.SpaceConfig"),
        (ado.register_space, NoSpace, "the space 'mine' must define space"),
    ],
)
def test_what_is_not_complete_is_refused_when_it_is_registered(register: Any, wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        register("mine", wrong)
    assert not any("mine" in registry for registry in REGISTRIES.values())


@pytest.mark.parametrize("group", list(ENTRIES))
def test_a_name_that_is_taken_or_empty_is_refused_and_the_same_entry_again_is_not(group: str) -> None:
    name, entry, register = ENTRIES[group]
    first = next(iter(REGISTRIES[group]))
    for wrong in (first, ""):
        with pytest.raises(UserError, match=f"must be registered under a name that is not taken; got '{wrong}'"):
            register(wrong, entry)
    register(name, entry)
    register(name, entry)
    assert REGISTRIES[group][name] is entry


def test_an_entry_point_that_is_not_complete_is_refused_when_it_is_named(
    plugins: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "third_party.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("third_party").thing = NoValue
    plugins.append(EntryPoint("mine", "third_party:thing", "autodiffusion_opt.metrics"))
    with pytest.raises(UserError, match="the metric 'mine' must define value"):
        load_study_config(str(write_study(tmp_path, metric="mine")))


def test_an_entry_point_of_another_kind_is_refused_with_a_sentence(plugins: list[EntryPoint], tmp_path: Path) -> None:
    plugins.append(EntryPoint("dictionary", "builtins:dict", "autodiffusion_opt.metrics"))
    with pytest.raises(UserError, match=r"the metric 'dictionary' must be a subclass of Metric; got <class 'dict'>"):
        load_study_config(str(write_study(tmp_path, metric="dictionary")))


def test_asking_for_a_name_does_not_import_the_plugin(plugins: list[EntryPoint]) -> None:
    plugins.append(EntryPoint("broken", "no_such_module:thing", "autodiffusion_opt.metrics"))
    assert "broken" in METRICS
    with pytest.raises(UserError, match="'broken' of no_such_module:thing cannot be loaded"):
        METRICS["broken"]
