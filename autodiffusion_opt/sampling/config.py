"""The tables ``[pipeline]`` and ``[conditions]``: what a file may say. Imports neither torch nor diffusers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from autodiffusion_opt.config import Config

Dtype = Literal["float32", "float16", "bfloat16"]
# Which keys belong to which kind of conditions.
CONDITION_KEYS = {"none": (), "prompts": ("prompts", "file", "column", "negative_prompt"), "labels": ("classes",)}


class PipelineConfig(Config):
    """The table ``[pipeline]``: which model, and how it is run.

    Attributes:
        model: an embedded name, a folder, or a hub id.
        scheduler: a diffusers scheduler's class name or a short name; absent: the model's own.
        scheduler_settings: keys of that scheduler's configuration to change.
        revision: the hub commit, tag or branch.
        variant: the file variant, ``fp16`` say.
        dtype: the type of weights and activations.
        device: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` ...
        batch_size: images handed over and measured at once; changes no image.
        micro_batch: images that the networks see at once, in every call; what the memory must hold.
        channels_last: the memory format of the denoiser.
        attention_slicing: less memory, more time.
        offload: parts of the pipeline wait in main memory (needs accelerate and a GPU).
        compile: ``torch.compile`` the denoiser, each layer by itself, so that removed layers compile nothing anew; as a
            whole where no layers are known.
        call: arguments of the pipeline's own call, ``height``, ``width``, ``eta`` ...
    """

    model: str = Field(min_length=1)
    scheduler: str | None = None
    scheduler_settings: dict[str, Any] = Field(default_factory=dict)
    revision: str | None = None
    variant: str | None = None
    dtype: Dtype = "float32"
    device: str = "auto"
    batch_size: int = Field(default=16, ge=1)
    micro_batch: int = Field(default=16, ge=1)
    channels_last: bool = False
    attention_slicing: bool = False
    offload: bool = False
    compile: bool = False
    call: dict[str, Any] = Field(default_factory=dict)


class ConditionsConfig(Config):
    """The table ``[conditions]`` of an objective: what each image is of, the same in every trial.

    Image i is of prompt i modulo their number; labels come in a random order, each once before any comes again.

    Attributes:
        kind: ``none``, ``prompts`` or ``labels``.
        prompts: the prompts themselves, or ``file`` has them.
        file: of prompts: text, one a line; JSON of COCO's captions, the first of each image; or CSV (``.csv``,
            ``.tsv``) with a named column.
        column: of a CSV file.
        negative_prompt: one for all images.
        classes: of labels: how many there are, or which; absent: all of the model's.
    """

    kind: Literal["none", "prompts", "labels"] = "none"
    prompts: tuple[str, ...] | None = None
    file: str | None = Field(default=None, min_length=1)
    column: str | None = None
    negative_prompt: str | None = None
    classes: int | tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _keys_of_kind(self) -> ConditionsConfig:
        keys = [key for allowed in CONDITION_KEYS.values() for key in allowed]
        given = [key for key in keys if getattr(self, key) is not None]
        strange = [key for key in given if key not in CONDITION_KEYS[self.kind]]
        if strange:
            allowed = ", ".join(CONDITION_KEYS[self.kind]) or "no other key"
            raise ValueError(f'kind = "{self.kind}" takes {allowed}; got {", ".join(strange)}')
        if self.kind == "prompts" and (self.file is None) == (self.prompts is None):
            came = "neither" if self.file is None else "both"
            raise ValueError(f'kind = "prompts" needs file, the prompts one a line, or prompts, a list; got {came}')
        if self.column is not None and self.file is None:
            raise ValueError("column is of a file; there is none")
        if self.prompts is not None and not any(prompt.strip() for prompt in self.prompts):
            raise ValueError(f"prompts must hold at least one prompt; got {list(self.prompts)}")
        if self.classes is not None and (self.classes == () or (isinstance(self.classes, int) and self.classes < 1)):
            raise ValueError(f"classes must be a number of at least 1, or a list of labels; got {self.classes!r}")
        return self
