"""The model in training: the one that sees, ears beside it, one more layer of language, a head that spells.

Only ears and language model learn; what is seen is computed as before.
Knows how a step's losses come about.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2VLForConditionalGeneration

from models.senses import tokens
from models.senses.batches import SensesBatch
from models.senses.ears import WIDTH, hear, new_ears
from models.senses.spelling import SYMBOLS, spelling_loss
from models.training.examples import IGNORED, Batch
from models.training.network import answer_logits, encode_pictures

NEW_LAYER = 2
"""Where the language model gets one more layer, which at first changes nothing."""
SPELLING_WEIGHT = 0.3


class SensesLearner(nn.Module):
    """The model with its spelling head."""

    def __init__(self, seeing: Qwen2VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = grown(seeing)
        self.model.set_attn_implementation("eager")
        self.model.model.visual.requires_grad_(False)
        self.ears = new_ears()
        self.spelling = nn.Linear(WIDTH, len(SYMBOLS))

    def forward(
        self, batch: dict[str, torch.Tensor], spectra: torch.Tensor, frame_counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Next-token logits of every token, and symbols' of every row that is heard."""
        seen = Batch(**batch)
        with torch.no_grad():
            cells = encode_pictures(self.model.model.visual, seen)
        heard = hear(self.ears, spectra, frame_counts)
        rows = torch.cat([cells.flatten(0, 1), heard.flatten(0, 1)])[None]
        return answer_logits(self.model, rows, seen), self.spelling(heard)


def grown(seeing: Qwen2VLForConditionalGeneration) -> Qwen2VLForConditionalGeneration:
    """The same model, to the number, with room for new tokens and one more layer."""
    seeing.resize_token_embeddings(tokens.SIZE, mean_resizing=False)
    layers = seeing.model.language_model.layers
    new = copy.deepcopy(layers[NEW_LAYER - 1])
    nn.init.zeros_(new.self_attn.o_proj.weight)
    nn.init.zeros_(new.mlp.down_proj.weight)
    layers.insert(NEW_LAYER, new)
    for number, layer in enumerate(layers):
        layer.self_attn.layer_idx = number
    text = seeing.config.text_config
    text.layer_types = [*text.layer_types, text.layer_types[-1]]
    text.num_hidden_layers = len(layers)
    return seeing


def losses(
    logits: torch.Tensor, spelled: torch.Tensor, batch: SensesBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """The answers' loss and the spelling's, each a mean."""
    labels = batch.seen.labels.flatten()
    each = F.cross_entropy(logits.flatten(0, 1).float(), labels, ignore_index=IGNORED, reduction="none")
    counted = batch.weights.flatten() * (labels != IGNORED)
    spoken = (each * counted).sum() / counted.sum()
    clips = len(batch.lengths)
    spelt = spelling_loss(spelled[:clips], batch.frame_counts[:clips], batch.targets, batch.lengths)
    return spoken, spelt * SPELLING_WEIGHT
