"""optuna-dashboard over a database of studies: with a note and own plots for each, on this machine alone.

The dashboard has no passwords, so that it listens on 127.0.0.1 unless told, and answers only who calls it by the name
that it listens on: a page of another site that a browser shows can neither read from it nor write to it.
"""

from __future__ import annotations

import importlib.util
import json
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.report import figures
from autodiffusion_opt.report.dashboard_view import DashboardView
from autodiffusion_opt.report.tables import number
from autodiffusion_opt.space.baselines import compared_with
from autodiffusion_opt.study.curves import images_of
from autodiffusion_opt.study.previews import artifact_folder
from autodiffusion_opt.study.results import Result, StoredStudy, stored_studies
from autodiffusion_opt.text import LINE, code_in_markdown, in_markdown, shell_word
from autodiffusion_opt.trials.attributes import WANTED
from autodiffusion_opt.trials.database import PROXY, parsed_url
from autodiffusion_opt.trials.opening import open_storage

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# The plots that the dashboard has not itself.
PLOTS = ("schedule", "times", "layers", "convergence", "importances")
# Seconds between two looks at which studies went on.
REFRESH_SECONDS = 30.0
HEADERS = (("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"))
# Pixels of a plot in the dashboard, whose cards cut what is higher.
CARD = 440
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FOREIGN = b"The dashboard answers only its own pages, under the address that it was started with.\n"


def describe(stored: StoredStudy) -> None:
    """Write a study's note and its own plots, where it has new trials since they were written."""
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object

    note = note_of(stored)
    if get_note(stored.study) == note:
        return
    for name, figure in figures.figures(stored).items():
        if name in PLOTS:
            figure.update_layout(
                title={"text": f"{name} (autodiffusion-opt)", "x": 0.02, "font": {"size": 14}},
                margin={"t": 64},
                height=min(figure.layout.height, CARD),
            )
            save_plotly_graph_object(stored.study, figure, graph_object_id=f"autodiffusion-{name}")
    save_note(stored.study, note)  # last: what was interrupted is written again


def note_of(stored: StoredStudy) -> str:
    """A study in Markdown: its results beside the baselines, how to use them, how it is defined."""
    states = stored.queries.states()
    done = states["complete"] + states["pruned"]
    lines = [
        f"# {in_markdown(stored.name)}",
        "",
        f"{done} of {stored.study.user_attrs.get(WANTED, '?')} trials, {images_of(stored):,.0f} images.",
        "",
    ]
    try:
        labelled = stored.labelled()
    except UserError as error:
        return "\n".join([*lines, in_markdown(str(error), LINE)])
    base = compared_with(stored.baselines())
    names = stored.value_names
    rows = {result.label: result for result in stored.baselines().values()} | labelled
    lines += [
        f"| | {' | '.join(map(in_markdown, names))} | time steps |",
        "| --- |" + " --- |" * (len(names) + 1),
        *(_row(label, result) for label, result in rows.items()),
        "",
    ]
    if base is not None and not stored.has_front and _first(base):
        share = _first(labelled["best"]) / _first(base)
        lines += [f"The best has {share:.3f} of the value of {in_markdown(str(base.baseline))}.", ""]
    lines += ["## Use it", ""]
    for verb in ("verify", "best", "report"):
        option = " -o best.json" if verb == "best" else ""
        lines.append(f"- {code_in_markdown(f'autodiffusion-opt {verb} {shell_word(stored.name)}{option}')}")
    lines += ["", "## Definition", ""]
    for part in ("pipeline", "space", "objective", "optimizer"):
        lines.append(f"- **{part}**: {code_in_markdown(_given(stored.definition.get(part)))}")
    return "\n".join(lines)


def _given(part: object) -> str:
    """A part of a definition as JSON, without keys that say nothing: absent ones, and empty tables and lists."""

    def kept(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: kept(item) for key, item in value.items() if item not in (None, {}, [])}
        return value

    return json.dumps(kept(part), ensure_ascii=False)


def _row(label: str, result: Result) -> str:
    values = " | ".join(number(value) for value in result.values.values())
    return f"| {in_markdown(label)} | {values} | {in_markdown(str(result.candidate))} |"


def _first(result: Result) -> float:
    return next(iter(result.values.values()))


def require_dashboard() -> None:
    """Raises UserError where optuna-dashboard or plotly is not installed."""
    missing = [name for name in ("optuna_dashboard", "plotly") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("the dashboard needs an extra: pip install 'autodiffusion-opt[dashboard]'")


@contextmanager
def server(url: str, host: str, port: int) -> Iterator[WSGIServer]:
    """A server of the dashboard, ready for ``serve_forever``; notes and plots follow the studies while it lasts.

    Args:
        url: of the database, which must exist.
        host: the address to listen on.
        port: 0: any that is free.

    Raises:
        UserError: where an extra is not installed, the database cannot be opened, or the port is taken.
    """
    require_dashboard()
    storage = open_storage(url, create=False)
    stop = threading.Event()
    try:
        listening = make_server(host, port, _application(url, host), _Server, _Quiet)
    except OSError as error:
        raise UserError(
            f"the dashboard cannot listen on {host}:{port}: {reason_of(error)}; give another --port"
        ) from None

    def follow() -> None:
        while not stop.is_set():
            for stored in stored_studies(storage):
                try:
                    describe(stored)
                except Exception as error:  # a study of another program, or a database that is gone for a while
                    warnings.warn(f"{stored.name}: no note and plots: {reason_of(error)}", stacklevel=1)
            stop.wait(REFRESH_SECONDS)

    following = threading.Thread(target=follow, daemon=True)
    following.start()
    try:
        yield listening
    finally:
        stop.set()
        listening.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


def _application(url: str, host: str) -> WSGIApplication:
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = open_storage(url) if parsed_url(url).drivername == PROXY else optuna.storages.get_storage(url)
    folder = Path(artifact_folder(url))
    with suppress(OSError):  # a folder that may not be written can still be read, once there is something in it
        folder.mkdir(parents=True, exist_ok=True)
    view = DashboardView(storage)  # type: ignore[abstract]  # its other methods are made where the class is
    return only_own_pages(wsgi(view, artifact_store=FileSystemArtifactStore(folder)), host)


def only_own_pages(application: WSGIApplication, host: str) -> WSGIApplication:
    """An application that refuses requests under another name, and from pages of other sites.

    Args:
        application: the dashboard.
        host: that it listens on; ``0.0.0.0`` and ``::`` have any name.
    """
    names = LOOPBACK if host in LOOPBACK else (host,)
    any_name = host in ("0.0.0.0", "::")

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        called = environ.get("HTTP_HOST", "")
        origin = environ.get("HTTP_ORIGIN")
        is_known = any_name or urlsplit(f"//{called}").hostname in names
        if not is_known or (origin is not None and urlsplit(origin).netloc != called):
            start_response("403 Forbidden", [("Content-Type", "text/plain"), ("Content-Length", str(len(FOREIGN)))])
            return [FOREIGN]
        return application(environ, _with_headers(start_response))

    return guarded


def _with_headers(start_response: StartResponse) -> Callable[..., Any]:
    """No content is taken for another type, and no other site shows the pages within its own."""

    def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        return start_response(status, [*headers, *HEADERS], *more)

    return start
