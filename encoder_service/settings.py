"""The encoder service's settings: the same names as flags and as PERCEPT_ variables."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from shared.settings import CommaList, DataTypeName, Device, ListenAddress, ServiceSettings


class EncoderSettings(ServiceSettings):
    """Frozen; read once at start."""

    model: str = Field(description="Checkpoint to serve: a local folder or a Hugging Face id.")
    model_parts: CommaList = Field(
        (),
        description="Folders of the repositories that the checkpoint's config.json names for parts of the "
        "model, as Ultravox's does, or folders that hold them; looked in before its own folder, the one "
        "around that, and the hub.",
    )
    served_model_name: CommaList = Field(
        (), description="Names that requests may use; the first is the main one. Default: the model's own."
    )
    listen: ListenAddress = Field(
        "127.0.0.1:50051", description="HOST:PORT to serve gRPC on; port 0 takes a free one."
    )
    device: Device = Field("auto", description="Where the tower runs; auto takes CUDA where there is one.")
    dtype: DataTypeName = Field(
        "auto", description="Element type of the tower and of its embeddings; auto takes float32 on the CPU."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of the tower. Default: torch's own.")
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
        "where a C++ compiler is there; torch: always torch.",
    )
    nice: int = Field(
        0,
        ge=0,
        le=19,
        description="How far the service yields to others on its machine, an LLM's decoding above all: "
        "0 shares cores evenly, 19 takes what others leave.",
    )
    workers: int = Field(
        # Two even on two cores: one costly picture must not hold up all others, and an idle
        # worker takes 62 MB.
        default_factory=lambda: max(2, min(8, (os.cpu_count() or 2) // 2)),
        ge=1,
        le=64,
        description="Worker processes that decode and preprocess, one item each at a time.",
    )
    llm: CommaList = Field(
        (), description="LLM services, HOST:PORT, that embeddings may be delivered to. Empty: any."
    )
    max_pending_items: int = Field(
        256, ge=1, description="Items accepted and not finished; more are refused, to keep waits short."
    )
    max_pending_payload_mib: int = Field(
        1024, ge=1, description="Payload bytes of the items above, in MiB; further ones are refused."
    )
    max_payload_mib: int = Field(64, ge=1, description="Largest payload of one item, in MiB.")
    max_image_pixels: int = Field(
        64_000_000,
        ge=1,
        description="Largest picture, width x height, checked before it is decoded. "
        "While a worker has it, it may use 24 bytes for each of these pixels and 1 GiB more.",
    )
    decode_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Seconds that decoding one item may take before its worker is killed; videos and audio "
        "have their own.",
    )
    video_decode_timeout_s: float = Field(
        60.0, gt=0, description="Seconds that decoding one video may take before its worker is killed."
    )
    max_video_seconds: float = Field(3600.0, gt=0, le=65536, description="Longest video, in seconds.")
    max_video_frames: int = Field(
        768, ge=1, description="Most frames that are taken of one video; longer lists of frames are refused."
    )
    max_video_frame_pixels: int = Field(
        9_000_000, ge=1, description="Largest frame of a video, width x height, checked before it is decoded."
    )
    max_video_pixels: int = Field(
        270_000_000,
        ge=1,
        description="Most pixels of all frames together that are taken of one video: 32 frames in 4K. "
        "While a worker has it, it may use 6 bytes for each of these pixels and 1 GiB more.",
    )
    max_video_decoded_pixels: int = Field(
        40_000_000_000,
        ge=1,
        description="Most pixels of all frames together that have to be decoded of one video: of those "
        "that are taken and of those that they build on.",
    )
    audio_decode_timeout_s: float = Field(
        60.0, gt=0, description="Seconds that decoding one recording may take before its worker is killed."
    )
    max_audio_seconds: float = Field(
        3600.0,
        gt=0,
        le=65536,
        description="Longest recording, in seconds, counted while it is decoded. While a worker has it, it "
        "may use 768,000 bytes for each of them and 1 GiB more.",
    )
    max_audio_samples: int = Field(
        500_000_000,
        ge=1,
        description="Most samples of one recording as they are in the file, of all its channels together, "
        "counted while it is decoded.",
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Patches that one run of the tower takes; a larger item runs alone. "
        "Default: 256 on the CPU, which gains nothing by more; 16384 on CUDA.",
    )
    batch_wait_ms: float = Field(
        5.0, ge=0, description="Longest wait for more items that are being decoded, to run them together."
    )
    cache_gib: float = Field(0.5, ge=0, description="Budget of the embedding cache, in GiB; 0 turns it off.")
    drain_grace_s: float = Field(
        10.0, ge=0, description="Seconds that running calls get to end after SIGTERM or SIGINT."
    )
