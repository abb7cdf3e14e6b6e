"""What a shell completes: names of studies, candidates, models and optimizers. Never an error, and nothing is made."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import click
from click.shell_completion import CompletionItem

from autodiffusion_opt.cli.names import SECTIONS, listed
from autodiffusion_opt.text import HIDDEN, cut

HELP_LENGTH = 70


def known_studies(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Studies of the catalogue and of the storage, or files."""
    return _items({**_stored(context), **_catalogue("studies")}, incomplete)


def stored_studies(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Studies of the storage that ``--storage`` names, or files."""
    return _items(_stored(context), incomplete)


def known_candidates(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Candidates of the catalogue and studies of the storage, or files."""
    return _items({**_stored(context), **_catalogue("candidates")}, incomplete)


def known_models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Embedded models, or folders."""
    from autodiffusion_opt.zoo import EMBEDDED

    return _items(dict.fromkeys(EMBEDDED, "embedded"), incomplete, "dir")


def listed_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """All that ``show`` knows."""
    return _items({name: text for section in SECTIONS for name, text in _catalogue(section).items()}, incomplete)


def known_optimizers(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of names with commas between them, the last."""
    before, comma, last = incomplete.rpartition(",")
    names = {f"{before}{comma}{name}": text for name, text in _catalogue("optimizers").items()}
    return _items(names, f"{before}{comma}{last}")


def _items(names: Mapping[str, str], incomplete: str, kind: str = "file") -> list[CompletionItem]:
    """The names that begin so; where none does, the shell completes files (or folders) itself."""
    fitting = [name for name in sorted(names) if name.startswith(incomplete) and not HIDDEN.search(name)]
    if not fitting:
        return [CompletionItem(incomplete, type=kind)]
    return [CompletionItem(name, help=cut(HIDDEN.sub(" ", names[name]), HELP_LENGTH)) for name in fitting]


def _catalogue(section: str) -> dict[str, str]:
    """Names with their descriptions."""
    with contextlib.suppress(Exception):  # a file that cannot be read
        return {each.name: each.description for each in listed(section)}
    return {}


def _stored(context: click.Context) -> dict[str, str]:
    """The names of the studies in the storage."""
    from autodiffusion_opt.trials.database import storage_url
    from autodiffusion_opt.trials.opening import stored_names

    with contextlib.suppress(Exception):  # no such database, no server, no driver
        return dict.fromkeys(stored_names(storage_url(context.params.get("storage"))), "in the storage")
    return {}
