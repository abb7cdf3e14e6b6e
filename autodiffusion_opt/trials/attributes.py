"""Every key that this package writes to SQL, and what it means. No other file spells one."""

from __future__ import annotations

from functools import lru_cache

from optuna.trial import FrozenTrial, TrialState

from autodiffusion_opt.candidate import Candidate

# User attributes of a trial.
CANDIDATE = "candidate"  # its canonical JSON, published before the parameters
BASELINE = "baseline"  # the name of the baseline that this is: own, or a usual schedule
LABEL = "label"  # what tables call a baseline, where it is more than its name
OPTIMIZER = "optimizer"  # the kind of the optimizer that proposed it
START = "start"  # the warm start that this is: dp, the name of a study, a file
ORIGIN = "origin"  # how the optimizer made it: random, mutation, crossover ...
STAGE = "stage"  # of a search in stages
# The positions before it that had no value when it was proposed, since other workers were at them: a table of
# ``measuring``, whose candidates were known, and ``proposing``; absent where there was none.
UNMEASURED = "unmeasured"
# Of a trial that Nevergrad is asked for: its turn; once it was asked, the point, what was told just before, versions.
NEVERGRAD = "nevergrad"
CATCMA = "catcma"  # the generation and the point of CatCMA's own that the parameters were made from
RETRY_OF = "retry_of"  # the position of the trial whose worker died
WORKER = "worker"  # host, process and start of the process that runs it
REUSED_FROM = "reused_from"  # the number of the trial whose values were taken over
SCORE = "score"  # named values, images, seconds, NFE, layer runs, FLOPs, and the two keys below
OF_IMAGES = "of_images"  # a number for each image, where a pruner compares them
EXCESS = "excess"  # while it runs, of a study with bounds: by how much its last rung's values are beyond them
COST_EXCESS = "cost_excess"  # the same of costs alone, which are those of the candidate after any rung
ERROR = "error"  # why it failed
EVALUATION_FAILED = "evaluation_failed"  # true: measuring raised an error, which is tried again once

# Keys of a score that no table shows: written with it, so that they cost no commit of their own.
SECONDS_OF = "seconds_of"  # seconds by part: sampling, features, metric, bookkeeping
PROVENANCE = "provenance"  # of the process that measured it: host, device and its name, dtype, versions

# Numbers of a score that are an attribute each too, so that the dashboard plots them and filters by them.
FLAT = ("nfe", "layer_runs", "flops", "images", "seconds")
# System attribute of a trial in which Optuna keeps what it has of a file, followed by the file's id.
ARTIFACT = "artifacts:"

# User attributes of a study.
DEFINITION = "definition"  # what must not change under the study's name
FINGERPRINT = "fingerprint"  # in the definition: of the model, the conditions, the reference
RANKING = "ranking"  # of layers, measured once
VERSIONS = "versions"  # of Python and the libraries when the study began
MODEL = "model"  # numbers of the model for plots: train_steps, layers, and times with their log-SNR
VERIFIED = "verified"  # what `verify` measured last, on fresh noise: a table of images, repeats, rows, sentences, when
WANTED = "trials"  # how many trials the study's file asks for
FILE = "file"  # the study's: relative paths in its tables start from its folder
FOLDERS = "folders"  # of the files that hold other parts, by the part's name: relative paths in those start there
SPENT = "spent"  # cost of warm starts before the first trial: a list of {"name", "images", "nfe" an image, "seconds"}

# Of a trial that died, a retry takes over what says which candidate it is and where it came from.
INHERITED = (CANDIDATE, BASELINE, START, LABEL, OPTIMIZER, ORIGIN, STAGE, UNMEASURED)
# The error of a trial whose worker ended without a word.
WORKER_DIED = "its worker died"
# System attribute in which Optuna keeps the parameters of an enqueued trial.
FIXED_PARAMETERS = "fixed_params"
# System attribute in which the dashboard reads constraints: a list.
CONSTRAINTS = "constraints"


@lru_cache(maxsize=65536)
def parse_candidate(text: str) -> Candidate:
    """The candidate of a JSON text, parsed once."""
    return Candidate.from_json(text)


def candidate_of(trial: FrozenTrial) -> Candidate | None:
    """The trial's candidate; None where the trial died before it had one."""
    text = trial.user_attrs.get(CANDIDATE)
    return None if text is None else parse_candidate(text)


def given_name(trial: FrozenTrial) -> tuple[str, str] | None:
    """Of a baseline or a warm start, which are measured before an optimizer is asked: which of both, and its name."""
    return next(((kind, trial.user_attrs[kind]) for kind in (BASELINE, START) if kind in trial.user_attrs), None)


def values_of(trial: FrozenTrial) -> tuple[float, ...] | None:
    """The trial's values, one for each direction of the study, if it completed."""
    if trial.state != TrialState.COMPLETE or not trial.values:
        return None
    return tuple(trial.values)


def excess_of(trial: FrozenTrial) -> float:
    """By how much the trial's values are beyond their bounds, summed; 0 where they keep to them all."""
    beyond = (value for name, value in constraints_of(trial).items() if value > 0)
    return float(sum(beyond))


def constraints_of(trial: FrozenTrial) -> dict[str, float]:
    """Optuna's constraints of a trial by name, without the dashboard's copy of them; each is kept where it is <= 0."""
    if not trial.system_attrs:  # of 10,000 trials this is asked often
        return {}
    listed = len(trial.system_attrs.get(CONSTRAINTS, ()))
    numbered = {str(index) for index in range(listed)}
    return {name: value for name, value in trial.constraints.items() if name not in numbered}


def numbers_of(trial: FrozenTrial) -> list[float]:
    """A number for each image of the trial, in the order of their indices; empty where none were kept."""
    numbers: list[float] = trial.user_attrs.get(OF_IMAGES, [])
    return numbers
