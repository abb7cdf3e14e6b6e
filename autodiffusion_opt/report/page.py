"""The report: one HTML file of one study or several, that asks for nothing else.

plotly's script is in it, and a content policy forbids any request. All text from outside is escaped.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from autodiffusion_opt.report import figures
from autodiffusion_opt.report.tables import number
from autodiffusion_opt.space.baselines import OWN, compared_with
from autodiffusion_opt.study.curves import images_of
from autodiffusion_opt.study.previews import read_preview
from autodiffusion_opt.study.provenance import versions
from autodiffusion_opt.study.results import Result, StoredStudy
from autodiffusion_opt.text import CELL, shell_word, visible
from autodiffusion_opt.trials.attributes import PROVENANCE, SCORE, VERIFIED, VERSIONS, WANTED

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Nothing but what is in the file; plotly makes pictures to download as blobs.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src data: blob:; base-uri 'none'; form-action 'none'"
)
TITLES = {
    "convergence": ("The search", "Each dot is a trial; lines are the baselines."),
    "schedule": ("When it samples", "A mark is a step; below it how many layers are not run. Open marks use a cache."),
    "times": ("Times of the best", "How often each time is in the 15 best candidates."),
    "layers": ("Layers not run", "The share of the 15 best candidates that leave a layer out at a step."),
    "front": ("Value and cost", "Each dot is a trial."),
    "importances": ("What matters", "How much of each number of a candidate decides its value (PED-ANOVA)."),
}
STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d1d9e0; --page: #fff; --box: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --page: #0d1117; --box: #151b23; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; font: 16px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.3rem; border-top: 1px solid var(--line); padding-top: 1rem; margin-top: 2rem; }
h3 { font-size: 1.05rem; margin-bottom: 0; } p { margin: 0.4rem 0; } .soft { color: var(--soft); font-size: 0.9rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 1.5rem; }
.plots section { min-width: 0; } .wide { grid-column: 1 / -1; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.25rem 0.8rem 0.25rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { overflow-wrap: normal; } tr.bold { font-weight: 600; } .images { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; } figure img { max-width: 100%; width: 18rem; image-rendering: pixelated; display: block; }
figcaption { font-size: 0.9rem; } pre { background: var(--box); padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; }
"""
# Draws every plot in the page's colours, again when these change.
SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const colours = () => {
  const style = getComputedStyle(document.documentElement);
  return { "font.color": style.getPropertyValue("--text"), "hoverlabel.bgcolor": style.getPropertyValue("--box"),
    "hoverlabel.font.color": style.getPropertyValue("--text") };
};
const plots = [...document.querySelectorAll(".plot")];
Promise.all(plots.map((plot) => {
  const figure = JSON.parse(plot.querySelector("script").textContent);
  plot.replaceChildren();
  return Plotly.newPlot(plot, figure.data, figure.layout, { responsive: true, displaylogo: false })
    .then(() => Plotly.relayout(plot, colours()));
})).then(() => { document.documentElement.dataset.plots = plots.length; });
dark.addEventListener("change", () => plots.forEach((plot) => Plotly.relayout(plot, colours())));
"""


def page(studies: Sequence[StoredStudy], url: str, grids: Mapping[str, Mapping[str, bytes]] | None = None) -> str:
    """The report of studies: several are drawn side by side first, where they measure the same value.

    Args:
        studies: with a complete trial each.
        url: of their database, beside which their previews are.
        grids: of a study's name, caption -> a PNG file of images; of studies that are not in it, the previews.

    Raises:
        UserError: where plotly is not installed, or a study has no complete trial.
    """
    figures.require_plotly()
    from plotly.offline import get_plotlyjs

    title = "Report of " + ", ".join(stored.name for stored in studies)
    parts = [f"<h1>{_text(title)}</h1>"]
    if len(studies) > 1:
        parts.append(_side_by_side(studies))
    for stored in studies:
        parts.append(_study(stored, url, (grids or {}).get(stored.name)))
    when = datetime.now(UTC).isoformat(timespec="minutes")
    parts.append(f'<p class="soft">Made by autodiffusion-opt {versions()["autodiffusion-opt"]}, {when}.</p>')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(title)}</title>\n<style>{STYLE}</style>\n'
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n" + "\n".join(parts) + f"\n<script>{SCRIPT}</script>\n"
        "</body>\n</html>\n"
    )


def _study(stored: StoredStudy, url: str, grid: Mapping[str, bytes] | None) -> str:
    parts = [f'<article id="{_text(stored.name)}"><h2>{_text(stored.name)}</h2>', _summary(stored), _results(stored)]
    pictures = previews(stored, url) if grid is None else grid
    if pictures:
        parts.append(_images(pictures))
    plots = (_plot(name, *TITLES[name], figure) for name, figure in figures.figures(stored).items())
    parts.append('<div class="plots">' + "".join(plots) + "</div>")
    parts += [_verified(stored), _use(stored), _provenance(stored), "</article>"]
    return "\n".join(parts)


def _side_by_side(studies: Sequence[StoredStudy]) -> str:
    columns = ("study", "optimizer", "trials", "images", "best", "time steps")
    rows = []
    for stored in studies:
        best = stored.top(1)[0]
        optimizer = ", ".join(stored.queries.proposed_by()) or str(_kind(stored, "optimizer"))
        count = str(stored.queries.states()["complete"] + stored.queries.states()["pruned"])
        images = f"{images_of(stored):,.0f}"
        rows.append((stored.name, optimizer, count, images, number(_first(best)), str(best.candidate)))
    table = _table(columns, rows)
    comparable = [stored for stored in studies if not stored.has_front and stored.value_names == studies[0].value_names]
    if len(comparable) < 2:
        return f"<h2>Side by side</h2>{table}"
    plot = _plot("comparison", "The searches", "The best value so far.", figures.convergence(comparable))
    return f'<h2>Side by side</h2>{table}<div class="plots">{plot}</div>'


def _summary(stored: StoredStudy) -> str:
    states, best, base = stored.queries.states(), stored.top(1)[0], compared_with(stored.baselines())
    done = states["complete"] + states["pruned"]
    text = f"{done} of {stored.study.user_attrs.get(WANTED, '?')} trials, {images_of(stored):,.0f} images."
    if stored.has_front:
        text += f" The front has {len(stored.top())} candidates."
    elif base is not None and _first(base):
        name = stored.value_names[0]
        text += f" The best has {name} {number(_first(best))}, {_first(best) / _first(base):.3f} of {base.baseline}."
    return f"<p>{_text(text)}</p>"


def _results(stored: StoredStudy) -> str:
    base = compared_with(stored.baselines())
    names = list(dict.fromkeys(name for result in stored.top() for name in result.measured)) or stored.value_names
    shares = not stored.has_front and base is not None and _first(base)
    columns = ("", *names, *((f"of {base.baseline}",) if shares and base else ()), "NFE", "FLOPs", "time steps")
    rows: list[tuple[str, ...]] = []
    bold = set()
    for label, result in {**_labelled_baselines(stored), **stored.labelled(None if stored.has_front else 5)}.items():
        if result.baseline is None:
            bold.add(len(rows))
        values = (number(result.measured.get(name)) for name in names)
        share = (f"{_first(result) / _first(base):.3f}",) if shares and base else ()
        costs = (str(result.costs["nfe"] or ""), number(result.costs["flops"]))
        rows.append((label, *values, *share, *costs, str(result.candidate)))
    return _table(columns, rows, bold)


def _labelled_baselines(stored: StoredStudy) -> dict[str, Result]:
    return {result.label: result for result in stored.baselines().values()}


def previews(stored: StoredStudy, url: str) -> dict[str, bytes]:
    """Caption -> PNG file: the previews of ``own`` and of the best that has one, from the same seeds."""
    by_candidate = {}
    for trial in stored.trials:
        picture = read_preview(trial, url)
        if picture is not None:
            by_candidate[trial.number] = picture
    wanted = {OWN: stored.baselines().get(OWN), **stored.labelled(3 if stored.has_front else 1)}
    captions = {}
    for label, result in wanted.items():
        if result is not None and result.trial in by_candidate:
            values = ", ".join(f"{name} {number(value)}" for name, value in result.measured.items())
            captions[f"{label}: {values} · {result.candidate}"] = by_candidate[result.trial]
    return captions


def _images(pictures: Mapping[str, bytes]) -> str:
    drawn = []
    for caption, content in pictures.items():
        source = base64.b64encode(content).decode()
        image = f'<img alt="{_text(caption)}" src="data:image/png;base64,{source}">'
        drawn.append(f"<figure>{image}<figcaption>{_text(caption)}</figcaption></figure>")
    note = "The same noise in the same places."
    return f'<h3>Images</h3><p class="soft">{note}</p><div class="images">{"".join(drawn)}</div>'


def _plot(name: str, title: str, note: str, figure: Figure) -> str:
    content = str(figure.to_json()).replace("<", "\\u003c")  # no text in it ends the script
    wide = ' class="wide"' if name in ("convergence", "schedule", "comparison") else ""
    height = figure.layout.height
    return (
        f'<section{wide}><h3>{_text(title)}</h3><p class="soft">{_text(note)}</p>'
        f'<div class="plot" data-plot="{_text(name)}" style="height:{height}px">'
        f'<script type="application/json">{content}</script></div></section>'
    )


def _verified(stored: StoredStudy) -> str:
    """What ``verify`` measured last; or how to."""
    verified = stored.study.user_attrs.get(VERIFIED)
    if not verified:
        command = f"autodiffusion-opt verify {shell_word(stored.name)}"
        note = (
            "Values of a search are too good: the best of many noisy ones. Measure again on fresh noise, then report:"
        )
        return f"<h3>Verified</h3><p>{note}</p><pre>{_text(command)}</pre>"
    note = f"{verified['repeats']} × {verified['images']:,} images of fresh noise."
    table = _table(verified["columns"], verified["rows"])
    sentences = "".join(f"<p>{_text(sentence)}</p>" for sentence in verified["sentences"])
    return f'<h3>Verified</h3><p class="soft">{_text(note)}</p>{table}{sentences}'


def _use(stored: StoredStudy) -> str:
    name = shell_word(stored.name)
    commands = (
        f"autodiffusion-opt best {name} -o best.json\n"
        f"autodiffusion-opt export {name} -o {shell_word(stored.name + '-export')}"
    )
    code = 'import autodiffusion_opt as ado\n\npipe = ado.apply(pipe, "best.json")  # a diffusers pipeline'
    best = stored.top(1)[0].candidate.to_json()
    return (
        f"<h3>Use it</h3><pre>{_text(commands)}</pre><pre>{_text(code)}</pre>"
        f'<p class="soft">The candidate\'s file holds:</p><pre>{_text(best)}</pre>'
    )


def _provenance(stored: StoredStudy) -> str:
    """Where and with what it was measured, and how the study is defined."""
    places = [trial.user_attrs.get(SCORE, {}).get(PROVENANCE) for trial in stored.trials]
    different = list({json.dumps(place, sort_keys=True, default=str): place for place in places if place}.values())
    began = {"began with": stored.study.user_attrs.get(VERSIONS, {}), "measured on": different}
    told = json.dumps({**began, "definition": stored.definition}, indent=2, ensure_ascii=False, default=str)
    return f"<details><summary>Provenance and definition</summary><pre>{_text(told, None)}</pre></details>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], bold: Iterable[int] = ()) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    marked = set(bold)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in row)
        lines.append(f'<tr class="bold">{cells}</tr>' if index in marked else f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _kind(stored: StoredStudy, part: str) -> Any:
    return stored.definition.get(part, {}).get("kind", "")


def _first(result: Result) -> float:
    return next(iter(result.values.values()))


def _text(text: object, longest: int | None = CELL) -> str:
    return html.escape(visible(str(text), longest, keep="\n"))
