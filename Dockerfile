# One file, three images: docker build --target encoder|llm|gateway .
# Each has all of the code, which is small, and only its own service's libraries,
# which are not: the gateway's image has no torch.

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/cache \
    XDG_CACHE_HOME=/cache
# Where pip looks for packages besides its default: name an index of CPU-only
# builds of torch here for images that are some gigabytes smaller.
ARG PIP_EXTRA_INDEX_URL=
RUN useradd --create-home percept && mkdir /cache && chown percept /cache
WORKDIR /percept
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY shared shared
COPY encoder_service encoder_service
COPY llm_service llm_service
COPY gateway gateway
COPY percept percept
COPY models models

FROM base AS gateway
RUN pip install .
USER percept
EXPOSE 8000
CMD ["percept", "gateway", "--listen", "0.0.0.0:8000"]

# What computes on a CPU is compiled for it at the first start, in seconds, and kept in /cache.
FROM base AS compiler
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

FROM compiler AS encoder
RUN pip install '.[encoder]'
USER percept
EXPOSE 50051
CMD ["percept", "encoder", "--listen", "0.0.0.0:50051"]

FROM compiler AS llm
RUN pip install '.[llm]'
USER percept
EXPOSE 50052
CMD ["percept", "llm", "--listen", "0.0.0.0:50052"]
