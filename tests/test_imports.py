"""What may be imported where: floors, one way; what knows no model starts without torch; the public names."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import autodiffusion_opt as ado

PACKAGE = Path(ado.__file__).parent
HEAVY = ("torch", "diffusers", "transformers", "torchvision", "torch_fidelity")
REPORT = f"; import sys, json; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"


def heavy_modules(script: str, folder: Path) -> list[str]:
    """Which heavy modules a script leaves imported, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script + REPORT], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_rooms_that_know_no_model_import_neither_torch_nor_diffusers(tmp_path: Path) -> None:
    rooms = ["candidate", "config", "errors", "progress", "catalogue", "space", "optimizer", "trials.opening"]
    rooms += ["trials.claims", "trials.history", "objective", "plugins", "sampling.config", "study.config", "zoo"]
    rooms += ["study.problem", "study.results", "study.run", "study.verify", "study.callback", "study.compare"]
    script = "; ".join(f"import autodiffusion_opt.{room}" for room in rooms)
    assert heavy_modules(script, tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["ls"],
        ["ls", "--json"],
        ["show", "digits-4"],
        ["run", "--help"],
        ["status"],
        ["compare", "x"],
        ["ls", "optimizers"],
        ["report", "x"],
        ["dashboard", "--help"],
        ["show", "x", "--trial", "0"],
        ["copy", "x", "--to", "sqlite:///y.db"],
    ],
)
def test_commands_that_make_no_images_import_neither_torch_nor_diffusers(words: list[str], tmp_path: Path) -> None:
    script = (
        "from autodiffusion_opt import cli, process; "
        f"code = process.exit_code(lambda: cli.app({words!r}, standalone_mode=False))"
    )
    assert heavy_modules(script, tmp_path) == []


def test_the_public_names_that_know_no_model_import_neither_torch_nor_diffusers(tmp_path: Path) -> None:
    know_a_model = ("ADMPipeline", "NoisyClassifier", "applied", "apply", "compile_layers", "install")
    know_a_model += ("load_pipeline", "remove")
    script = (
        f"import autodiffusion_opt as ado; [getattr(ado, name) for name in ado.__all__ if name not in {know_a_model}]"
    )
    assert heavy_modules(script, tmp_path) == []


@pytest.mark.slow
def test_the_probe_sees_torch_where_it_is_imported(tmp_path: Path) -> None:
    assert "torch" in heavy_modules("import autodiffusion_opt; autodiffusion_opt.apply", tmp_path)


def test_public_names_are_these_and_each_is_what_it_is_called() -> None:
    classes = "ADMPipeline Callback Candidate CandidateMetric CandidateSampler EvaluationError Features ImageMetric"
    classes += (
        " Metric MetricConfig ModelInfo NoisyClassifier OptimizerConfig Proposal Space SpaceConfig Step Study UserError"
    )
    functions = "applied apply compare compile_layers install load_pipeline register_features register_layer_kind"
    functions += " register_metric register_optimizer register_space remove"
    assert sorted(ado.__all__) == sorted(f"{classes} {functions}".split())
    assert sorted(dir(ado)) == sorted([*ado.__all__, "__version__"])
    for name in ado.__all__:
        assert getattr(ado, name).__name__ == name
        assert getattr(ado, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ado.nothing  # noqa: B018


# Floors and arrows, also of imports inside functions and for types.

# From the ground up; two rooms of one floor do not know each other. What is not listed is on the ground.
FLOORS = (
    {"progress", "recommended", "signals", "text"},
    {"errors"},
    {"engine", "paths"},
    {"config", "candidate", "catalogue", "files", "process", "zoo"},
    {"cache"},
    {"space"},
    {"trials", "sampling"},
    {"optimizer", "objective"},
    {"plugins"},
    {"study"},
    {"report", "testing", ""},
    {"cli"},
    {"__main__"},
)
# The embedded models' own trainings use the library from outside; nothing imports them.
SCRIPTS = {"zoo.digits.train"}


@cache
def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; the package itself is the empty name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if "_catalogue" not in path.parts:
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if name not in SCRIPTS}


def imported(name: str) -> Iterator[str]:
    """The modules of the package that a module names in an import, wherever in its file that stands."""
    own, known = ado.__name__, modules()
    for node in ast.walk(ast.parse(known[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name[len(own) + 1 :] for alias in node.names if alias.name.split(".")[0] == own)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports name the whole path"
            if str(node.module).split(".")[0] == own:
                base = str(node.module)[len(own) + 1 :]
                inner = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
                yield from (one if one in known else base for one in inner)


def at_import(name: str) -> Iterator[str]:
    """What a module imports; the package's own ``__init__`` names the modules of its lazy names, as types."""
    yield from (one for one in imported(name) if one != name)


def room(name: str) -> str:
    return name.split(".")[0]


def test_no_modules_import_each_other_in_a_circle_also_not_for_types_or_inside_functions() -> None:
    # `from autodiffusion_opt import x` of a lazy name is an import of the package, which stands above what it names.
    graph = {name: set(at_import(name)) for name in modules()}
    assert sum(map(len, graph.values())) > 100
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_every_import_goes_down() -> None:
    floor = {one: number for number, rooms in enumerate(FLOORS) for one in rooms}
    unknown = {room(name) for name in modules()} - set(floor)
    assert not unknown, f"a new room needs a floor: {unknown}"
    wrong = [
        f"{name} -> {other}"
        for name in modules()
        for other in at_import(name)
        if room(other) != room(name) and floor[room(other)] >= floor[room(name)]
    ]
    assert wrong == []


def test_what_is_measured_and_how_it_is_searched_know_nothing_of_each_other() -> None:
    branches = ({"objective", "sampling"}, {"optimizer", "trials"})
    for own, other in (branches, branches[::-1]):
        wrong = [
            f"{name} -> {one}"
            for name in modules()
            if room(name) in own
            for one in at_import(name)
            if room(one) in other
        ]
        assert wrong == []


def test_only_sampling_and_the_zoo_know_diffusers() -> None:
    guilty = set()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(one.split(".")[0] == "diffusers" for one in names):
                guilty.add(room(name))
    assert guilty <= {"sampling", "zoo"}


# Optuna's private names.

# The rooms for them.
PRIVATE = {"trials.sql", "trials.studies"}
# Beside these: where each is, and why.
ALLOWED = {
    ("trials.history", "_trial_id"),  # the key by which only new trials are read
    ("trials.history", "_storage"),
    ("trials.history", "_study_id"),
    ("trials.claims", "_trial_id"),
    ("trials.claims", "_storage"),
    ("trials.claims", "_study_id"),
    ("trials.proxy", "_trial_id"),
    ("trials.queries", "_rdb"),  # the tables of Optuna's storage, for statements of our own
    ("trials.queries", "_storage"),  # which kind it is, and that no cache stands before it
    ("trials.queries", "_study_id"),
    ("trials.queries", "_get_trials"),
    ("trials.queries", "_trial_id"),
    ("trials.reading", "_rdb"),  # the same
    ("trials.writing", "_rdb"),  # the same
    ("trials.moving", "_rdb"),  # the same, for whole studies
    ("trials.moving", "_storage"),
    ("trials.moving", "_study_id"),
    ("optimizer.parameters", "_trial_id"),
    ("optimizer.catcma", "_v_raw"),  # of cmaes: the point that its solution was made from
    ("optimizer.parameters", "_get_trials"),  # a view of a study: what Optuna's samplers call to read trials
}


def private_names(name: str) -> set[str]:
    """Names with a leading underscore that a module reads from what is not its own object."""
    found = set()
    tree = ast.parse(modules()[name].read_text())
    own = {node.attr for node in ast.walk(tree) if _of_self(node)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _of_self(node):
            is_private = node.attr.startswith("_") and not node.attr.startswith("__")
            if is_private and node.attr not in own:
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            found |= {one for one in names if one.startswith("_") and not one.startswith("__")}
    return found


def _of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_only_two_rooms_touch_optunas_private_names() -> None:
    found = {
        (name, private)
        for name in modules()
        if room(name) in ("trials", "study", "optimizer", "report") and name not in PRIVATE
        for private in private_names(name)
    }
    assert found - ALLOWED == set()
    assert "_rdb" in private_names("trials.sql")
    assert "_trial_id" in private_names("trials.studies")
