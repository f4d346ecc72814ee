# The command `radio`, for a CPU. With CUDA:
#   docker build --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 --build-arg TORCH=cu128 --tag radio .
ARG BASE=debian:13-slim
FROM ghcr.io/astral-sh/uv:0.13.9 AS uv
FROM ${BASE}
ARG TORCH=cpu
ARG EXTRAS=app
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python VIRTUAL_ENV=/opt/radio PATH=/opt/radio/bin:$PATH
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE modeling_radio_cli.py ./
COPY core core
COPY training training
COPY conversion conversion
COPY model_cards model_cards
COPY modeling_radio modeling_radio
RUN uv venv --python 3.12 "$VIRTUAL_ENV" \
    && uv pip install --no-cache --torch-backend "$TORCH" ".[$EXTRAS]" \
    && useradd --uid 10001 --create-home radio \
    && install --directory --owner radio /cache /work
ENV RADIO_CACHE=/cache/radio HF_HOME=/cache/huggingface
USER 10001
WORKDIR /work
ENTRYPOINT ["radio"]
CMD ["--help"]
