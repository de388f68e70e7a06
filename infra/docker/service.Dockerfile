# The scoring service, with the packages that it imports and no others (service.lock).
# Built from the repository's root: docker build -f infra/docker/service.Dockerfile -t perennial/service:0.1.0 .
FROM python:3.11.13-slim-bookworm AS build

WORKDIR /build
RUN python -m venv --without-pip /opt/venv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# For strip. Debian keeps the newest build of a version only, so a pin would break.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
COPY infra/docker/service.lock infra/docker/service_prune.sh ./
RUN pip --python /opt/venv install --no-deps -r service.lock \
    && sh service_prune.sh /opt/venv/lib/python3.11/site-packages
COPY pyproject.toml README.md LICENSE ./
COPY perennial ./perennial
COPY pipelines ./pipelines
COPY features ./features
COPY validation ./validation
COPY rollout ./rollout
COPY serving ./serving
RUN pip --python /opt/venv install --no-deps .

FROM python:3.11.13-slim-bookworm
RUN useradd --uid 1000 --create-home --home-dir /home/perennial perennial
COPY --from=build /opt/venv /opt/venv
WORKDIR /home/perennial
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
EXPOSE 8000
USER 1000:1000
CMD ["python", "-m", "serving", "--host", "0.0.0.0", "--port", "8000"]
