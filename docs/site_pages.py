"""The pages of the site that are in no file of docs/: README, changelog, and the API, made from the docstrings.

MkDocs runs it as a hook (mkdocs.yml). The pages in docs/ stay as they are; only a link that leaves docs/ is changed.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import autodiffusion_opt as ado
from autodiffusion_opt.config import Registry

ROOT = Path(__file__).parent.parent
# Every public name of the package, by page: (file, title, what it is about, names).
API = (
    ("study", "Study", "A study in Python: made, run, looked at.", ("Study", "Callback", "compare")),
    (
        "candidate",
        "Candidates",
        "One way to sample, and the errors that are raised.",
        ("Candidate", "Step", "UserError", "EvaluationError"),
    ),
    (
        "pipelines",
        "Pipelines",
        "Load a pipeline, and put a candidate on it.",
        ("apply", "remove", "install", "applied", "load_pipeline", "compile_layers", "ADMPipeline", "NoisyClassifier"),
    ),
    (
        "own",
        "Kinds of one's own",
        "Metrics, optimizers, spaces and layers of one's own; [extending](../extending.md) shows one of each.",
        (
            "ImageMetric",
            "CandidateMetric",
            "Features",
            "Metric",
            "MetricConfig",
            "register_metric",
            "register_features",
            "CandidateSampler",
            "OptimizerConfig",
            "Proposal",
            "register_optimizer",
            "Space",
            "SpaceConfig",
            "ModelInfo",
            "register_space",
            "register_layer_kind",
        ),
    ),
)
# The kinds of a table, by page: (file, title, the registry's module and name).
KINDS = (
    ("spaces", "space", "autodiffusion_opt.space", "SPACES"),
    ("objectives", "objective", "autodiffusion_opt.objective", "METRICS"),
    ("optimizers", "optimizer", "autodiffusion_opt.optimizer", "OPTIMIZERS"),
)
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
WITHOUT_HEADING = {
    "show_root_heading": False,
    "show_root_toc_entry": False,
    "members": False,
    "inherited_members": False,
}
# A role of the docstrings, :class:`~module.Name`, after the backticks became HTML.
ROLE = re.compile(r":\w+:<code>~?(?:[\w.]*\.)?(\w+)</code>")


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' event: adds the pages."""
    from mkdocs.structure.files import File

    for name, text in pages():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs' event: a link that leaves docs/ names its file instead."""
    return LINK.sub(_inside, markdown) if page.file.generated_by is None else markdown


def on_page_content(html: str, **_: Any) -> str:
    """MkDocs' event: roles of the docstrings become plain code."""
    return ROLE.sub(r"<code>\1</code>", html)


def pages() -> Iterator[tuple[str, str]]:
    """(path below docs/, Markdown) of each page."""
    for file, home in (("README.md", "index.md"), ("CHANGELOG.md", "changelog.md")):
        yield home, LINK.sub(_from_root, (ROOT / file).read_text(encoding="utf-8"))
    for file, title, about, names in API:
        yield f"api/{file}.md", "\n".join([f"# {title}", "", about, "", *map(_of_name, names)])
    for file, table, module, registry in KINDS:
        yield f"api/{file}.md", _of_kinds(table, getattr(importlib.import_module(module), registry))


def _of_name(name: str) -> str:
    if name != "Study":  # its plots are in a class of their own, for they stand on a higher floor
        return _documented(_path(getattr(ado, name)), heading=name, toc_label=name)
    plots = _documented(
        "autodiffusion_opt.report.study.Study",
        show_root_heading=False,
        show_root_toc_entry=False,
        inherited_members=False,
        heading_level=3,
    )
    return _documented("autodiffusion_opt.study.run.Study", heading=name, toc_label=name) + plots


def _of_kinds(table: str, registry: Registry[Any]) -> str:
    """The kinds of a table, a section for each module: what it says of itself, then its classes."""
    modules: dict[str, dict[Any, list[str]]] = {}
    families = {f"{prefix}NAME": entry for prefix, entry in registry.families.items()}
    for name, entry in {**{name: registry[name] for name in registry}, **families}.items():
        if entry.__module__.startswith("autodiffusion_opt."):  # not of a plug-in
            modules.setdefault(entry.__module__, {}).setdefault(entry, []).append(name)
    lines = [f"# Kinds of `[{table}]`", "", "What each kind is. [Keys](../keys.md) lists the keys of its table.", ""]
    for module, classes in modules.items():
        lines += [f"## {', '.join(f'`{name}`' for names in classes.values() for name in names)}", ""]
        lines += [_documented(path, **WITHOUT_HEADING) for path in (module, *map(_path, classes))]
    return "\n".join(lines)


def _path(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _documented(path: str, **options: Any) -> str:
    """mkdocstrings' block for one object."""
    lines = [f"::: {path}", "    options:", *(f"      {key}: {json.dumps(value)}" for key, value in options.items())]
    return "\n".join([*lines, "", ""])


def _inside(link: re.Match[str]) -> str:
    if not link["target"].startswith("../"):
        return link[0]
    return f"{link['text']} (`{link['target'].removeprefix('../')}`)"


def _from_root(link: re.Match[str]) -> str:
    target = link["target"].replace("CHANGELOG.md", "changelog.md").replace("README.md", "index.md")
    return f"[{link['text']}]({target.removeprefix('docs/')})"
