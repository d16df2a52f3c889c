# syntax=docker/dockerfile:1
# docs/container.md says how to build this. No heredocs, no COPY --link or --parents, no
# RUN --network and no secrets as variables: buildah, which CI builds it with, has none of them.

ARG BASE_IMAGE=python:3.12-slim-bookworm

# A folder of wheels that replaces the package index: --build-context wheels=FOLDER.
FROM scratch AS wheels
COPY constraints.txt /

# What the running container needs of the system.
FROM ${BASE_IMAGE} AS system
ARG PROFILE=tiny
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Triton and inductor build small C and C++ modules at run time; the tiny profile compiles nothing.
# hadolint ignore=DL3008,SC2086
RUN packages="tini"; \
    if [ "$PROFILE" != tiny ]; then \
        packages="$packages g++ libc6-dev"; \
        [ -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] \
            || packages="$packages python3-dev"; \
    fi; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*; \
    useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin pixpod
# official images of Python come without bytecode, and a read-only root cannot keep any later
RUN python3 -m compileall -q -j 0 -x '/(lib2to3|test|tests|site-packages|dist-packages)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

# pip and what else is needed to build only, in an environment of its own. The tiny image takes any
# build of torch, the others the files whose hashes are in the lock file.
FROM ${BASE_IMAGE} AS tools
ARG PROFILE=tiny
ARG REQUIRE_HASHES=""
ARG PIP_OPTIONS=""
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /opt/build
COPY pyproject.toml constraints.txt cuda.lock build.lock ./
# hadolint ignore=SC2086
RUN --mount=type=bind,from=wheels,target=/run/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv .; \
    if [ "$PROFILE" = tiny ]; then default=false; else default=true; fi; \
    if [ "${REQUIRE_HASHES:-$default}" = true ]; then \
        printf '%s\n' --require-hashes "--only-binary :all:" "$(cat cuda.lock)" > requirements.txt; \
        tools="--require-hashes --only-binary :all: --requirement build.lock"; \
    else \
        bin/python -c 'import tomllib; \
            print("--constraint constraints.txt", *tomllib.load(open("pyproject.toml", "rb"))\
            ["project"]["dependencies"], sep="\n")' > requirements.txt; \
        tools="--constraint constraints.txt cyclonedx-bom"; \
    fi; \
    bin/pip install --quiet --disable-pip-version-check --find-links /run/wheels $PIP_OPTIONS $tools

# The locked dependencies, compiled. 130 MB of torch's own test programs are left out.
FROM system AS dependencies
ARG PIP_OPTIONS=""
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# copied, not mounted: buildah's cache does not see what changes in a mount
COPY --from=tools /opt/build/requirements.txt /opt/build/constraints.txt /opt/venv/
# hadolint ignore=SC2086
RUN --mount=type=bind,from=tools,source=/opt/build,target=/opt/build \
    --mount=type=bind,from=wheels,target=/run/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/venv; \
    /opt/build/bin/pip --python /opt/venv/bin/python install --quiet --disable-pip-version-check \
        --no-compile --find-links /run/wheels $PIP_OPTIONS \
        --requirement /opt/venv/requirements.txt; \
    rm -r /opt/venv/lib/python3*/site-packages/torch/test; \
    find /opt/venv/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete; \
    python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/py3[0-9]+_[^/]*$' /opt/venv/lib

# The code as it runs, compiled: below /app.
FROM ${BASE_IMAGE} AS code
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY LICENSE handler.py /app/
COPY src/pixpod /app/src/pixpod
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /app

# Weights of the profile and of EXTRAS, in eight folders of near-equal size. The token is in this RUN only.
# What is baked stays in the builder's cache: a build that failed goes on, one after a change of
# code checks and copies.
FROM dependencies AS weights
ARG PROFILE=tiny
ARG ACCEPT_LICENCES=""
ARG EXTRAS=""
ARG CATALOG=""
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY --from=code /app /app
COPY src/pixpod_tools/__init__.py /app/src/pixpod_tools/
COPY src/pixpod_tools/bake /app/src/pixpod_tools/bake
COPY model_cache /app/model_cache
WORKDIR /app/src
RUN --mount=type=secret,id=hf_token,target=/run/secrets/hf_token,required=false \
    --mount=type=cache,target=/baked \
    flags=(); \
    for licence in $ACCEPT_LICENCES; do flags+=(--accept-licence "$licence"); done; \
    for extra in $EXTRAS; do flags+=(--extra "$extra"); done; \
    if [ -n "$CATALOG" ]; then flags+=(--catalog "/app/model_cache/$CATALOG"); fi; \
    if [ -s /run/secrets/hf_token ]; then \
        flags+=(--token-file /run/secrets/hf_token); \
        echo "a token of $(wc -c < /run/secrets/hf_token) bytes" > /token_was_given; \
    fi; \
    if [ "$PROFILE" != slim ]; then \
        bake=(/opt/venv/bin/python -m pixpod_tools.bake.cli); \
        baked="/baked/$PROFILE${EXTRAS:+ with $EXTRAS}"; \
        "${bake[@]}" --profile "$PROFILE" --to "$baked" "${flags[@]}"; \
        "${bake[@]}" --layers 8 --from "$baked" --to /layers; \
    fi; \
    mkdir -p /layers/{0..7}; \
    if [ -n "$CATALOG" ]; then cp "/app/model_cache/$CATALOG" /layers/7/; fi

# What is inside: Python packages, Debian packages and models, as CycloneDX.
FROM weights AS sbom
ARG VERSION=""
COPY src/pixpod_tools/container/sbom.py /
RUN --mount=type=bind,from=tools,source=/opt/build,target=/opt/build \
    /opt/build/bin/cyclonedx-py environment --no-validate --output-reproducible \
        --output-format JSON --output-file /sbom.json /opt/venv/bin/python; \
    dpkg-query --show --showformat '${Package}\t${Version}\t${Architecture}\n' > /packages; \
    python3 /sbom.py /sbom.json /layers/7 "$VERSION" < /packages

FROM dependencies AS runtime
COPY --from=weights /layers/0/ /weights/
COPY --from=weights /layers/1/ /weights/
COPY --from=weights /layers/2/ /weights/
COPY --from=weights /layers/3/ /weights/
COPY --from=weights /layers/4/ /weights/
COPY --from=weights /layers/5/ /weights/
COPY --from=weights /layers/6/ /weights/
COPY --from=weights /layers/7/ /weights/
COPY --from=sbom /sbom.json /sbom.json
COPY --from=code /app /app
# /tmp is the only place that must be writable: a tmpfs where the root is not
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton \
    PYTORCH_ALLOC_CONF=expandable_segments:True \
    PIXPOD_WEIGHTS_DIR=/weights \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
ARG PROFILE=tiny
ARG VERSION=""
ARG REVISION=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="pixpod" \
      org.opencontainers.image.description="FLUX, SDXL and SD 1.5 as a RunPod Serverless worker" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="MIT" \
      pixpod.profile="${PROFILE}"
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "handler.py"]
