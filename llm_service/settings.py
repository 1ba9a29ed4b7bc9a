"""Settings of the LLM service. Knows names, types and defaults; does nothing with them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.settings import CommaList, DataTypeName, Device, ItemLimits, ListenAddress, ServiceSettings

DEFAULT_ITEM_LIMIT = 64
"""Items of a served modality in one prompt where `limit_mm_per_prompt` does not name it."""


class LlmSettings(ServiceSettings):
    """All settings of one LLM service."""

    model: str = Field(description="Checkpoint: a local folder, or an id on the Hugging Face hub.")
    model_parts: CommaList = Field(
        (),
        description="Folders of the repositories that the checkpoint's config.json names for parts of the "
        "model, as Ultravox's does, or folders that hold them; looked in before its own folder, the one "
        "around that, and the hub.",
    )
    listen: ListenAddress = Field("127.0.0.1:50052", description="HOST:PORT to serve gRPC on.")
    served_model_name: CommaList = Field(
        (), description="Names that requests may use; the first is the main one. Default: the model's own."
    )
    device: Device = Field("auto", description="Where the language model computes.")
    dtype: DataTypeName = Field(
        "auto",
        description="Element type of weights and KV cache; auto: float32 on CPU, the checkpoint's on CUDA.",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads for computing. Default: the library's.")
    shared_cores: str | None = Field(
        None,
        description="File through which services on this machine share its cores: each takes its part while "
        "others compute, and all while they do not. percept up makes one.",
    )
    shared_rows: str | None = Field(
        None,
        description="Folder in memory (below /dev/shm) through which encoders hand rows to LLM services that "
        "see the same folder, instead of over the connection. percept up makes one.",
    )
    kernels: Literal["auto", "torch"] = Field(
        "auto",
        description="What computes on the CPU. auto: Percept's own kernels, compiled at the first start, "
        "where a C++ compiler is there and the model fits; torch: always torch.",
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Longest prompt with its answer, in tokens. Default: the checkpoint's."
    )
    max_num_seqs: int = Field(64, ge=1, description="Most sequences in one step.")
    max_num_batched_tokens: int = Field(
        1024, ge=1, description="Most tokens in one step: the size of a prefill chunk."
    )
    block_size: int = Field(16, ge=1, description="KV slots in one block.")
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description=(
            "Size of the KV cache in GiB. Default: what fits (CUDA), a tenth of the available memory, "
            "at most 4 GiB (CPU)."
        ),
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of the GPU's memory that weights and KV cache may take."
    )
    embedding_store_gib: float = Field(
        0.5, gt=0, description="Most memory for embedding rows that wait for their prefill, in GiB."
    )
    enable_prefix_caching: bool = Field(True, description="Reuse the KV blocks of equal prompt beginnings.")
    enforce_eager: bool = Field(
        False, description="On CUDA, launch every kernel of a decoding step by itself: no CUDA graphs."
    )
    step_timeout_s: float = Field(
        300.0,
        gt=0,
        description="The engine is started again when it is silent for so long over a step, in seconds.",
    )
    max_pending_requests: int = Field(
        256, ge=1, description="Requests accepted and not finished; further ones are refused, not queued."
    )
    limit_mm_per_prompt: ItemLimits = Field(
        {},
        description=f"Most items per prompt, as image=4. Default: {DEFAULT_ITEM_LIMIT} of each modality, "
        "and one where the model takes no more.",
    )
    chat_template: str | None = Field(
        None, description="File with a Jinja chat template to use instead of the checkpoint's."
    )
    generation_config: Literal["auto", "percept"] = Field(
        "auto",
        description="Source of sampling defaults: the checkpoint's generation_config.json, or Percept's own.",
    )
    drain_grace_s: float = Field(
        30.0, ge=0, description="How long running requests may go on after SIGTERM, in seconds."
    )
