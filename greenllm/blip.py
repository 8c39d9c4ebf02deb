"""BLIP's captioner with the face of transformers' encoder-decoders, which it is but for the names. Only captions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import BlipForConditionalGeneration


class Captioner(BlipForConditionalGeneration):
    """What sees is its encoder, what writes its decoder; parameters and their names are those of its own class.

    Args:
        config: transformers' ``BlipConfig``; changed, to say what those of encoder-decoders say.
    """

    def __init__(self, config: Any) -> None:
        config.is_encoder_decoder = True
        config.text_config.add_cross_attention = config.text_config.is_decoder  # one flag is both in BLIP
        super().__init__(config)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """What gives the states that the decoder looks at, after their last norm."""
        del modality  # it sees images and nothing else
        return self.vision_model

    def get_decoder(self) -> nn.Module:
        """What writes, with its head."""
        return self.text_decoder

    def get_output_embeddings(self) -> nn.Module:
        """The head, whose matrix is by default that of the embedding."""
        return self.text_decoder.get_output_embeddings()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        *,
        use_cache: bool | None = None,
    ) -> Any:
        """Logits [B, T, V] of tokens [B, T] about pixels [B, 3, H, W], or about what the encoder gave of them."""
        seen = self.vision_model(pixel_values) if encoder_outputs is None else encoder_outputs
        return self.text_decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=seen.last_hidden_state,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
