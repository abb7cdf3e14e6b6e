"""``kind = "command"``: a program of the user's own, in an environment of its own, measures a folder of images.

For what does not go into this process: ImageReward, HPS and the like, each with its own versions of everything. The
program is called as ``command... FOLDER PROMPTS``. FOLDER holds ``000000.png``, ``000001.png``, ...; PROMPTS is a JSON
list of ``{"file": "000000.png", "prompt": "..."}``, with ``label`` where the conditions are classes. It prints JSON as
its last line: a number, or an object of numbers.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from autodiffusion_opt.errors import EvaluationError, UserError, reason_of
from autodiffusion_opt.objective.custom import named_values
from autodiffusion_opt.objective.goals import Direction
from autodiffusion_opt.objective.metrics.base import Comparison, ImagesConfig, Metric
from autodiffusion_opt.paths import absolute
from autodiffusion_opt.progress import Progress

if TYPE_CHECKING:
    import torch

    from autodiffusion_opt.objective.features import Extractor
    from autodiffusion_opt.sampling.conditions import Conditions
    from autodiffusion_opt.sampling.generate import ImageSampler

SHOWN = 2000  # characters of what the program wrote to stderr, the last ones


class CommandConfig(ImagesConfig):
    """The keys of ``kind = "command"``.

    Attributes:
        command: the program and its arguments, a list of words; no shell reads them. The program is called with two
            more, the folder of images and the file of prompts, in the folder that relative paths start from.
        version: of the program: text that is changed whenever it would give other numbers. A resumed study compares it.
        name: of the value that is optimised, where the program prints several.
        direction: whether less or more is better.
        timeout: seconds after which the program is stopped and the trial fails.
    """

    command: tuple[str, ...] = Field(min_length=1)
    version: str = Field(min_length=1)
    name: str = Field(default="value", min_length=1)
    direction: Direction
    timeout: float = Field(default=3600.0, gt=0)

    def directions(self) -> Mapping[str, Direction]:
        """Of the value that the table names."""
        return {self.name: self.direction}

    def comparison(
        self, sampler: ImageSampler, extractor: Extractor | None, base: Path, progress: Progress
    ) -> Comparison:
        """The conditions, for the program to read. Raises UserError for a program that is not there."""
        program = Program(self, sampler.conditions, absolute("", base))
        program.check()
        return Comparison(f"command {self.version}", lambda seed, images, progress: program)


@dataclass(frozen=True)
class Program:
    """The user's program.

    Attributes:
        config: how it is called.
        conditions: what each image is of.
        folder: in which it runs.
    """

    config: CommandConfig
    conditions: Conditions
    folder: Path

    def check(self) -> None:
        """Raises UserError for a program that is not there or cannot be run."""
        word = os.path.expanduser(self.config.command[0])
        place = str(self.folder / word) if os.sep in word else word
        if shutil.which(place) is None:
            where = f"no file {place} that can be run" if os.sep in word else f"no program {word} on the PATH"
            raise UserError(f"command: {self.config.command[0]!r} is not there: there is {where}")

    def described(self, index: int) -> dict[str, Any]:
        """An image's entry in the file of prompts."""
        from autodiffusion_opt.sampling.conditions import Labels, Prompts

        entry: dict[str, Any] = {"file": file_name(index), "prompt": None}
        if isinstance(self.conditions, Prompts):
            entry["prompt"] = self.conditions.prompts[index % len(self.conditions.prompts)]
        elif isinstance(self.conditions, Labels):
            entry["label"] = self.conditions.label(index)
        return entry

    def run(self, images: Path, prompts: Path) -> str:
        """What it prints to stdout.

        Raises:
            EvaluationError: where it cannot be started, is not done in time, or ends with another code than 0.
        """
        first, *more = self.config.command
        words = [os.path.expanduser(first), *more, str(images), str(prompts)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            # In a session of its own, so that its children are stopped with it.
            process = subprocess.Popen(words, cwd=self.folder, start_new_session=True, **pipes)  # type: ignore[call-overload]
        except OSError as error:
            raise EvaluationError(f"command: {first!r} cannot be started: {reason_of(error)}") from None
        try:
            printed, told = process.communicate(timeout=self.config.timeout)
        except subprocess.TimeoutExpired:
            _stop(process)
            _, told = process.communicate()
            raise EvaluationError(
                f"command: {first!r} was not done after {self.config.timeout:g} seconds, and was stopped{_shown(told)}"
            ) from None
        except BaseException:
            _stop(process)
            raise
        if process.returncode:
            raise EvaluationError(f"command: {first!r} ended with exit code {process.returncode}{_shown(told)}")
        text: str = printed.decode(errors="replace")
        return text


class Command(Metric):
    """Writes each image to a folder, which is removed with the measurement."""

    Config: ClassVar[type[ImagesConfig]] = CommandConfig

    def __init__(self, config: CommandConfig, reference: Program) -> None:
        super().__init__(config, reference)
        self._program = reference
        self._name = config.name
        place = Path(tempfile.mkdtemp(prefix="autodiffusion-command-"))
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        self._images, self._prompts = place / "images", place / "prompts.json"
        self._images.mkdir()
        self._count = 0

    def add(self, block: torch.Tensor, /) -> None:
        """uint8 (N, C, H, W), the images that follow those added before."""
        from PIL import Image

        for image in block.permute(0, 2, 3, 1).cpu().numpy():
            if image.shape[2] not in (1, 3):
                raise UserError(f"command: images must have 1 or 3 channels to be PNG files; got {image.shape[2]}")
            picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
            picture.save(self._images / file_name(self._count))
            self._count += 1

    def value(self) -> Mapping[str, float]:
        """What the program says of all images. Raises EvaluationError where it fails or prints no such numbers."""
        entries = [self._program.described(index) for index in range(self._count)]
        self._prompts.write_text(json.dumps(entries, indent=1), encoding="utf-8")
        what = f"command: {self._program.config.command[0]!r}"
        values = named_values(_parsed(self._program.run(self._images, self._prompts), what), [self._name], what)
        for name, value in values.items():
            if not math.isfinite(value):
                raise EvaluationError(f"{what} must give finite numbers; {name} is {value}")
        return values


def file_name(index: int) -> str:
    """Of an image; in the order of names, images are in the order of indices."""
    return f"{index:06d}.png"


def _parsed(printed: str, what: str) -> Any:
    """The last line that is not empty, as JSON; programs like to say more before."""
    lines = [line for line in printed.splitlines() if line.strip()]
    try:
        return json.loads(lines[-1]) if len(lines) else json.loads("")
    except ValueError:
        last = repr(lines[-1][:200]) if lines else "nothing"
        raise EvaluationError(
            f"{what} must print JSON, a number or an object of numbers, as its last line; got {last}"
        ) from None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _shown(told: bytes) -> str:
    """What it wrote to stderr, for a message."""
    text = told.decode(errors="replace").strip()
    return f"; it wrote to stderr: {text[-SHOWN:]}" if text else "; it wrote nothing to stderr"
