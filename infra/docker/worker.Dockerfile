# Everything but the scoring service: the Prefect worker, flow runs, Prefect's and MLflow's servers, followers.
# Built from the repository's root: docker build -f infra/docker/worker.Dockerfile -t perennial/worker:0.1.0 .
FROM python:3.11.13-slim-bookworm AS build

WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The packages first: they change seldom, and are most of the image. The lock says which versions, and pyproject.toml which of them.
COPY requirements.lock pyproject.toml README.md LICENSE infra/docker/kubernetes.lock ./
RUN pip install --constraint requirements.lock . \
    && pip install --no-deps --target /opt/kubernetes -r kubernetes.lock
COPY perennial ./perennial
COPY pipelines ./pipelines
COPY features ./features
COPY validation ./validation
COPY training ./training
COPY rollout ./rollout
COPY serving ./serving
COPY flows ./flows
RUN pip install --no-deps --force-reinstall .

FROM python:3.11.13-slim-bookworm
# LightGBM brings no OpenMP of its own. Debian keeps the newest build of a version only, so a pin would break.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --home-dir /home/perennial perennial
COPY --from=build /opt/venv /opt/venv
# What the Prefect worker needs to make jobs, apart: every other process would import it, for 2 s and 80 MB (decision 18).
COPY --from=build /opt/kubernetes /opt/kubernetes
# Deployments name flows by module, and runs start in the folder that they were deployed from.
WORKDIR /opt/perennial
COPY prefect.yaml ./
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true
USER 1000:1000
CMD ["perennial", "--help"]
