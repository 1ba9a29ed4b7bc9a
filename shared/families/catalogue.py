"""What each model family takes: the one table behind documents, commands and answers about it.

Knows facts, not code: importing it imports neither torch nor transformers nor
NumPy nor any family, so the gateway and clients may. `shared/families/__init__.py`
finds a family's class through it, and tests hold the facts to what the classes do.
"""

from __future__ import annotations

from shared.families.facts import (
    IN_CONVERSATION,
    EmbeddingFields,
    FamilyFacts,
    Modality,
    SpeechFacts,
    SpeechInstructions,
)

__all__ = [
    "CATALOGUE",
    "IN_CONVERSATION",
    "LEVELS",
    "EmbeddingFields",
    "FamilyFacts",
    "Modality",
    "SpeechFacts",
    "SpeechInstructions",
    "facts_of",
]

LEVELS = ("deepstack_0", "deepstack_1", "deepstack_2")
"""Fields of Qwen3-VL's further rows; a checkpoint has as many as its configuration says."""

CATALOGUE: tuple[FamilyFacts, ...] = (
    # One entry for each `model_type`, in the order of the alphabet.
    FamilyFacts(
        "aria",
        "aria:AriaFamily",
        ("rhymes-ai/Aria",),
        embedding_fields={"image": EmbeddingFields(("image_embeds",))},
        settings=("max_image_size", "split_image"),
        notes="A mixture of experts.",
    ),
    FamilyFacts(
        "deepseek_vl",
        "deepseek_vl:DeepseekVLFamily",
        ("deepseek-community/deepseek-vl-1.3b-chat",),
        embedding_fields={"image": EmbeddingFields(("image_embeds",))},
    ),
    FamilyFacts(
        "deepseek_vl_hybrid",
        "deepseek_vl_hybrid:DeepseekVLHybridFamily",
        ("deepseek-community/deepseek-vl-7b-chat",),
        embedding_fields={"image": EmbeddingFields(("image_embeds",))},
        notes="Two towers, SigLIP and SAM.",
    ),
    FamilyFacts(
        "florence2",
        "florence2:Florence2Family",
        ("florence-community/Florence-2-large", "microsoft/Florence-2-large"),
        embedding_fields={"image": EmbeddingFields(("image_embeds",), ("image_sizes",))},
        several=False,
        notes="A message is a task (`<CAPTION>`, `<OD>`, `<OCR>`, ...) about one picture; what an answer says"
        " comes as JSON beside its text.",
    ),
    FamilyFacts(
        "gemma3",
        "gemma3:Gemma3Family",
        ("google/gemma-3-4b-it", "google/gemma-3-27b-it"),
        embedding_fields={"image": EmbeddingFields(("image_embeds",))},
        settings=(
            "do_pan_and_scan",
            "pan_and_scan_min_crop_size",
            "pan_and_scan_max_num_crops",
            "pan_and_scan_min_ratio_to_activate",
        ),
        notes="Pan and scan on demand; the rows of a picture see each other.",
    ),
    FamilyFacts(
        "glm4v",
        "glm4v:Glm4vFamily",
        ("zai-org/GLM-4.1V-9B-Thinking",),
        modalities=("image", "video"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds", "image_grid_thw")),
            "video": EmbeddingFields(("video_embeds", "video_grid_thw", "timestamps")),
        },
        settings=("min_pixels", "max_pixels", "size"),
    ),
    FamilyFacts(
        "granite_speech",
        "granite_speech:GraniteSpeechFamily",
        ("ibm-granite/granite-speech-3.3-2b", "ibm-granite/granite-speech-3.3-8b"),
        modalities=("audio",),
        embedding_fields={"audio": EmbeddingFields(("audio_embeds",))},
        speech=SpeechFacts(IN_CONVERSATION, times=False),
        notes="Recordings of any length; prompts with recordings are computed with the checkpoint's adapter.",
    ),
    FamilyFacts(
        "idefics3",
        "idefics3:Idefics3Family",
        ("HuggingFaceM4/Idefics3-8B-Llama3",),
        embedding_fields={"image": EmbeddingFields(("image_embeds", "image_grid_thw"))},
        settings=("size", "do_image_splitting"),
        notes="Large pictures in tiles.",
    ),
    FamilyFacts(
        "internvl",
        "internvl:InternVLFamily",
        ("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-8B-hf"),
        modalities=("image", "video"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds",)),
            "video": EmbeddingFields(("video_embeds",)),
        },
        settings=("max_dynamic_patch", "min_dynamic_patch", "crop_to_patches"),
        video_settings=(),
        notes="Pictures are cut into tiles by their shape; a Qwen2, Qwen3, Llama or Mistral language model.",
    ),
    FamilyFacts(
        "llava",
        "llava:LlavaFamily",
        ("llava-hf/llava-1.5-7b-hf", "mistral-community/pixtral-12b"),
        embedding_fields={"image": EmbeddingFields(("image_embeds",), ("image_sizes",))},
        notes="A CLIP, SigLIP or Pixtral tower with a Llama, Mistral or Qwen2 language model;"
        " with Pixtral's, `image_sizes` is required and `size` may be set.",
    ),
    FamilyFacts(
        "llava_next",
        "llava_next:LlavaNextFamily",
        ("llava-hf/llava-v1.6-mistral-7b-hf", "royokong/e5-v"),
        embedding_fields={"image": EmbeddingFields(("image_embeds", "image_sizes"))},
        notes="Pictures are cut into tiles by their size.",
    ),
    FamilyFacts(
        "llava_onevision",
        "llava_onevision:LlavaOnevisionFamily",
        ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
        modalities=("image", "video"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds", "image_sizes")),
            "video": EmbeddingFields(("video_embeds",)),
        },
        notes="Pictures are cut into tiles by their size, however many there are.",
    ),
    FamilyFacts(
        "mistral3",
        "mistral3:Mistral3Family",
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503",),
        embedding_fields={"image": EmbeddingFields(("image_embeds", "image_sizes"))},
        settings=("size",),
    ),
    FamilyFacts(
        "mllama",
        "mllama:MllamaFamily",
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "meta-llama/Llama-3.2-90B-Vision-Instruct"),
        embedding_fields={"image": EmbeddingFields(("image_embeds", "image_grid_thw"))},
        notes="Text looks at pictures across layers of its own; a picture takes 6404 tokens of the context.",
    ),
    FamilyFacts(
        "phi4_multimodal",
        "phi4_multimodal:Phi4MultimodalFamily",
        ("microsoft/Phi-4-multimodal-instruct",),
        modalities=("image", "audio"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds",)),
            "audio": EmbeddingFields(("audio_embeds",)),
        },
        settings=("dynamic_hd", "num_crops"),
        audio_settings=("audio_projection_mode",),
        audio_settings_beside_pictures={"audio_projection_mode": "vision"},
        speech=SpeechFacts(IN_CONVERSATION, times=False),
        notes="Prompts with pictures, and those with recordings alone, are computed with the checkpoint's"
        " adapters for them.",
        other_model_types=("phi4mm",),
    ),
    FamilyFacts(
        "qwen2_5_omni",
        "qwen2_5_omni:OmniFamily",
        ("percept-tiny", "Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B"),
        modalities=("image", "video", "audio"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds", "image_grid_thw")),
            "video": EmbeddingFields(("video_embeds", "video_grid_thw"), ("second_per_grid_ts",)),
            "audio": EmbeddingFields(("audio_embeds",)),
        },
        settings=("min_pixels", "max_pixels", "size"),
        video_settings=("min_pixels", "max_pixels", "size", "use_audio_in_video"),
        audio_settings=("truncation",),
        speech=SpeechFacts(IN_CONVERSATION, times=False),
        notes="Listens, sees and reads, and answers in text; a video may be taken with its sound.",
        other_model_types=("qwen2_5_omni_thinker",),
    ),
    FamilyFacts(
        "qwen2_5_vl",
        "qwen2_5_vl:Qwen25VLFamily",
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct"),
        modalities=("image", "video"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds", "image_grid_thw")),
            "video": EmbeddingFields(("video_embeds", "video_grid_thw"), ("second_per_grid_ts",)),
        },
        settings=("min_pixels", "max_pixels", "size"),
    ),
    FamilyFacts(
        "qwen2_audio",
        "qwen2_audio:Qwen2AudioFamily",
        ("Qwen/Qwen2-Audio-7B-Instruct",),
        modalities=("audio",),
        embedding_fields={"audio": EmbeddingFields(("audio_embeds",))},
        audio_settings=("truncation",),
        speech=SpeechFacts(IN_CONVERSATION, times=False),
        notes="Hears recordings of up to 30 seconds.",
    ),
    FamilyFacts(
        "qwen2_vl",
        "qwen2_vl:Qwen2VLFamily",
        ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-72B-Instruct"),
        modalities=("image", "video"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds", "image_grid_thw")),
            "video": EmbeddingFields(("video_embeds", "video_grid_thw")),
        },
        settings=("min_pixels", "max_pixels", "size"),
    ),
    FamilyFacts(
        "qwen3_5",
        "qwen3_5:Qwen35Family",
        ("Qwen/Qwen3.5-27B",),
        modalities=("image", "video"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds", "image_grid_thw")),
            "video": EmbeddingFields(("video_embeds", "video_grid_thw", "timestamps")),
        },
        settings=("min_pixels", "max_pixels", "size"),
        notes="Linear attention: every sequence keeps a state of its own, and none shares another's prefix.",
    ),
    FamilyFacts(
        "qwen3_vl",
        "qwen3_vl:Qwen3VLFamily",
        ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-32B-Instruct"),
        modalities=("image", "video"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds", "image_grid_thw"), LEVELS),
            "video": EmbeddingFields(("video_embeds", "video_grid_thw", "timestamps"), LEVELS),
        },
        settings=("min_pixels", "max_pixels", "size"),
        notes="Embeddings hold every level: `image_embeds` wider by as many, or one field a level.",
    ),
    FamilyFacts(
        "qwen3_vl_moe",
        "qwen3_vl_moe:Qwen3VLMoeFamily",
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
        modalities=("image", "video"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds", "image_grid_thw"), LEVELS),
            "video": EmbeddingFields(("video_embeds", "video_grid_thw", "timestamps"), LEVELS),
        },
        settings=("min_pixels", "max_pixels", "size"),
        notes="Embeddings as those of `qwen3_vl`.",
    ),
    FamilyFacts(
        "smolvlm",
        "smolvlm:SmolVLMFamily",
        ("HuggingFaceTB/SmolVLM-Instruct", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
        modalities=("image", "video"),
        embedding_fields={
            "image": EmbeddingFields(("image_embeds", "image_grid_thw")),
            "video": EmbeddingFields(("video_embeds", "timestamps", "duration")),
        },
        settings=("size", "do_image_splitting"),
        video_settings=(),
        notes="Large pictures in tiles; the times of frames are in the prompt.",
    ),
    FamilyFacts(
        "ultravox",
        "ultravox:UltravoxFamily",
        ("fixie-ai/ultravox-v0_5-llama-3_2-1b", "fixie-ai/ultravox-v0_5-llama-3_1-8b"),
        modalities=("audio",),
        embedding_fields={"audio": EmbeddingFields(("audio_embeds",))},
        speech=SpeechFacts(IN_CONVERSATION, times=False),
        notes="Recordings of any length; repositories that its config.json names are looked for inside its"
        " folder, beside it, in --model-parts and on the hub.",
    ),
    FamilyFacts(
        "voxtral",
        "voxtral:VoxtralFamily",
        ("mistralai/Voxtral-Mini-3B-2507", "mistralai/Voxtral-Small-24B-2507"),
        modalities=("audio",),
        embedding_fields={"audio": EmbeddingFields(("audio_embeds",))},
        speech=SpeechFacts(IN_CONVERSATION, times=False),
        notes="Recordings of any length, heard in windows of 30 seconds.",
    ),
    FamilyFacts(
        "whisper",
        "whisper:WhisperFamily",
        ("openai/whisper-large-v3-turbo", "openai/whisper-small", "openai/whisper-tiny.en"),
        modalities=("audio",),
        embedding_fields={"audio": EmbeddingFields(("audio_embeds",))},
        audio_settings=("truncation",),
        speech=SpeechFacts(None, times=True),
        several=False,
        notes="Writes down one recording of up to 30 seconds, with or without times; a message's text is what"
        " was said before.",
    ),
)
"""All families."""

_BY_MODEL_TYPE = {name: facts for facts in CATALOGUE for name in (facts.model_type, *facts.other_model_types)}


def facts_of(model_type: str) -> FamilyFacts | None:
    """The facts of a family, or None where there is none of that `model_type`."""
    return _BY_MODEL_TYPE.get(model_type)
