"""Small tokenizers trained offline on a few sentences, in the two styles of the families.

Qwen's: byte-level BPE, special tokens last. Llama's: BPE on "▁" words with
byte fallback, special tokens first, `<image>` last, a begin token in front.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_CORPUS = (
    "You are a helpful assistant. Describe the picture, please: what is in the image?",
    "There is a red circle to the left of a blue square, and a small green triangle below them.",
    "How many shapes are there? Three. Which colour is the large one? It is yellow.",
    "The user asks and the assistant answers; the system says how. Compare the two pictures.",
    "Was für ein Bild ist das? Où est le cercle rouge? 赤い丸は左にあります。",
    "0 1 2 3 4 5 6 7 8 9 10 20 30 42 100 2024, 3.14; (a) [b] {c} <d> \"e\" 'f' #g @h &i *j",
)


def build_qwen_tokenizer(
    vocabulary_size: int = 560,
    special_tokens: Sequence[str] = QWEN_SPECIAL_TOKENS,
    end: str = "<|im_end|>",
    named: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Returns a fast tokenizer in Qwen's style; `end` ends an answer.

    Args:
        named: further special tokens that processors ask for by name ("audio_token").
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if named:
        tokenizer.add_special_tokens([*special_tokens, *named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token="<|endoftext|>",
        **_special(special_tokens, named),
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _special(tokens: Sequence[str], named: Mapping[str, str]) -> dict[str, Any]:
    """Arguments that tell transformers of special tokens: by name where any has one."""
    return {"extra_special_tokens": dict(named)} if named else {"additional_special_tokens": list(tokens)}


def build_llama_tokenizer(
    vocabulary_size: int = 300,
    image_token: str = "<image>",
    more: Sequence[str] = (),
    named: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Returns a fast tokenizer in Llama's style, about 550 tokens with its 256 byte tokens.

    Args:
        image_token: the placeholder of a picture.
        more: further special tokens.
        named: further special tokens that processors ask for by name ("audio_token").
    """
    from tokenizers import Tokenizer, decoders, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(_byte_fallback_model(vocabulary_size))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *more])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": image_token, **named},
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _byte_fallback_model(vocabulary_size: int, pieces: Sequence[str] = ()) -> Any:
    """Trains merges, then puts the special and the 256 byte tokens before them.

    Args:
        pieces: runs of one character that are tokens of their own, the shortest first.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        [text for text in _CORPUS if text.isascii()],
        trainers.BpeTrainer(vocab_size=vocabulary_size, show_progress=False),
    )
    learnt = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    learnt_pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    vocabulary = {piece: index for index, piece in enumerate([*first, *learnt_pieces])}
    # The longest runs first: what a merge makes must be there before it is merged on.
    runs = [(left, right) for left in pieces for right in pieces if left + right in vocabulary]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learnt["merges"]]
    merges = [*runs, *merges]
    return models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def build_gemma_tokenizer(vocabulary_size: int = 300) -> Any:
    """Returns a fast tokenizer in Gemma's style: like Llama's, but no space in front, and runs of line
    breaks are single tokens, so that what is put beside a line break changes the tokens there."""
    from tokenizers import Tokenizer, decoders, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    model = _byte_fallback_model(vocabulary_size, pieces=["\n" * count for count in range(1, 6)])
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
