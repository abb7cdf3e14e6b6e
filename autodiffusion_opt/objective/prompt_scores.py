"""CLIP's opinion of images and their prompts; the network is loaded once, and each prompt embedded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers

from autodiffusion_opt.errors import UserError, reason_of
from autodiffusion_opt.objective.features import colour
from autodiffusion_opt.sampling.fingerprint import fingerprint_weights
from autodiffusion_opt.sampling.generate import enough_memory


class PromptScores:
    """100 max(cos(image, prompt), 0) of image i and prompt i modulo their number.

    Args:
        model: of CLIP: a folder, or a hub id.
        prompts: in their order.
        device: where the network runs.

    Raises:
        UserError: for a model that cannot be had.
    """

    def __init__(self, model: str, prompts: Sequence[str], device: torch.device) -> None:
        try:
            self._network = transformers.CLIPModel.from_pretrained(model).to(device).eval()
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
            self._processor = transformers.CLIPImageProcessor.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise UserError(
                f"clip-score: the model {model!r} cannot be had as a CLIP model: {reason_of(error)}"
            ) from None
        self._prompts = tuple(prompts)
        self._device = device
        self._embedded: dict[str, torch.Tensor] = {}
        self.identity = f"clip-score-{fingerprint_weights(self._network)[:32]}"

    @torch.inference_mode()
    def of_each(self, images: torch.Tensor, first: int) -> torch.Tensor:
        """(N,) of images uint8 (N, C, H, W), of which the first has the index ``first``."""
        prompts = [self._prompts[(first + place) % len(self._prompts)] for place in range(len(images))]
        pictures = [image.permute(1, 2, 0).numpy() for image in colour(images).cpu()]
        given = self._processor(images=pictures, input_data_format="channels_last", return_tensors="pt")
        with enough_memory(f"the clip-score of {len(images)} images", "batch_size"):
            seen = _unit(self._network.get_image_features(pixel_values=given["pixel_values"].to(self._device)))
            read = torch.stack([self._of_prompt(prompt) for prompt in prompts])
        cosines: torch.Tensor = (seen * read).sum(dim=1)
        return 100 * cosines.clamp(min=0)

    def _of_prompt(self, prompt: str) -> torch.Tensor:
        """(D,), of length 1."""
        if prompt not in self._embedded:
            limit = int(self._network.config.text_config.max_position_embeddings)
            given = self._tokenizer([prompt], truncation=True, max_length=limit, return_tensors="pt")
            tokens = {name: value.to(self._device) for name, value in given.items()}
            self._embedded[prompt] = _unit(self._network.get_text_features(**tokens))[0]
        return self._embedded[prompt]


def _unit(given: torch.Tensor) -> torch.Tensor:
    """(N, D), each of length 1, on the CPU in float64."""
    features: torch.Tensor = getattr(given, "pooler_output", given)  # transformers 5 gives a whole output
    unit: torch.Tensor = torch.nn.functional.normalize(features.double().cpu(), dim=1)
    return unit
