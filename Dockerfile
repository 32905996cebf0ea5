# One image for all roles; the command says which:
#
#   docker build -t gpu-fleet .
#   docker run --rm --init -p 127.0.0.1:8080:8080 gpu-fleet            simulators behind one endpoint
#   docker run --rm gpu-fleet router --help                            the router alone
#   docker run --rm gpu-fleet python -m launcher.simulator --help      one simulated engine
#   configs/compose.yaml                                               the launcher, engines in containers
#
# Without a network: put the wheels into wheels/ first, then build with --network none.
#
#   pip download -d wheels . 'setuptools>=77'                          with the image's Python version
#
# No BuildKit is needed, and a base image only needs python3 (3.11 or newer, with venv), sh and
# coreutils.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
RUN python3 -m venv /opt/gpu-fleet
WORKDIR /build
# The dependencies are a layer of their own, so that a change of code does not install them again.
# The pattern keeps wheels/ optional.
COPY pyproject.toml wheel[s] wheels/
RUN set -eu; \
    if ls wheels/*.whl >/dev/null 2>&1; then \
      printf '[global]\nno-index = true\nfind-links = /build/wheels\n' >/opt/gpu-fleet/pip.conf; \
    fi; \
    python3 -c "import tomllib; \
print(*tomllib.load(open('wheels/pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      >requirements.txt; \
    /opt/gpu-fleet/bin/pip install -q --no-cache-dir --disable-pip-version-check -r requirements.txt
COPY . src
RUN set -eu; \
    /opt/gpu-fleet/bin/pip install -q --no-cache-dir --disable-pip-version-check --no-deps ./src; \
    /opt/gpu-fleet/bin/pip uninstall -q -y setuptools pip; \
    rm -f /opt/gpu-fleet/pip.conf

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="GPU Fleet" \
      org.opencontainers.image.description="One endpoint for all your GPUs: launcher, router and simulator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Any user may keep state here: `--user` is common, and nobody else lives in this container.
RUN set -eu; \
    echo 'fleet:x:10001:10001:GPU Fleet:/var/lib/gpu-fleet:/bin/sh' >>/etc/passwd; \
    echo 'fleet:x:10001:' >>/etc/group; \
    mkdir -p /var/lib/gpu-fleet /etc/gpu-fleet; \
    chmod 1777 /var/lib/gpu-fleet
COPY --from=build /opt/gpu-fleet /opt/gpu-fleet
COPY configs/container.yaml /etc/gpu-fleet/fleet.yaml
# State is kept in /var/lib/gpu-fleet/<cluster>, as under systemd.
ENV PATH=/opt/gpu-fleet/bin:$PATH \
    HOME=/var/lib/gpu-fleet \
    XDG_STATE_HOME=/var/lib \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/gpu-fleet
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8080
# Asks whatever serves here, on whatever port; a container that serves no HTTP is never unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-I", "-m", "launcher.healthcheck"]
CMD ["launcher", "up", "-c", "/etc/gpu-fleet/fleet.yaml"]
