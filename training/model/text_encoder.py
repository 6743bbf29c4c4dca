"""Token ids to one feature a word and one for the sentence."""

from __future__ import annotations

import torch
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from training.model.config import CRISConfig
from training.model.image_encoder import HEAD_WIDTH


class TextEncoder(nn.Module):
    """CLIP's text transformer that also returns its words."""

    def __init__(self, config: CRISConfig):
        super().__init__()
        self.tower = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.text_width,
            heads=config.text_width // HEAD_WIDTH,
            layers=config.text_layers,
            output_dim=config.embed_dim,
            # OpenAI's weights need it; GELU proper computes something else without a word.
            act_layer=QuickGELU,
        )
        # Finite, since a moving average of the weights takes in the buffers, and between two
        # infinities lies NaN. A score of -1e4 leaves as little behind: nothing.
        self.tower.attn_mask.clamp_(min=-1e4)
        # CLIP's temperature: CRIS has no use for it, but checkpoints carry it.
        self.logit_scale = nn.Parameter(torch.tensor(2.6593), requires_grad=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode phrases.

        Args:
            tokens: (B, L) int64, padded with 0; the end token has the largest id.

        Returns:
            words (B, L, text_width) after the last layer norm, before the projection; sentence
            (B, embed_dim), the projected feature at the end token; padding (B, L) bool.
        """
        tower = self.tower
        length = tokens.shape[1]
        states = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        mask = tower.attn_mask[:length, :length]
        words = tower.ln_final(tower.transformer(states, attn_mask=mask))
        end = tokens.argmax(dim=1)
        # A product with the one-hot row instead of an index: no gather in the exported graph.
        at_end = (torch.arange(length, device=tokens.device) == end[:, None]).to(words.dtype)
        sentence = (at_end[:, None] @ words)[:, 0] @ tower.text_projection
        return words, sentence, tokens == 0
