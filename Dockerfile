# The proxy in an image of its own: no compiler, no pip, no settings and no secrets in it, and nothing that it writes to
# but the folder /var/lib/cmail-proxy. Runs as uid 65532 with a read-only root and without any capability.
#
#     docker build --tag cmail-proxy:0.1.0 .
#     docker run --read-only --cap-drop ALL --volume ./settings.yaml:/etc/cmail-proxy/settings.yaml:ro \
#       --tmpfs /var/lib/cmail-proxy:uid=65532,gid=65532 --publish 127.0.0.1:2525:2525 \
#       cmail-proxy:0.1.0 serve --config /etc/cmail-proxy/settings.yaml
#
# The base is pinned by tag, so that a build today has today's security fixes. To get the same base again and again, give
# its digest (docker buildx imagetools inspect python:3.13-slim-bookworm shows it), or a mirror of your own:
#
#     docker build --build-arg PYTHON_IMAGE=python:3.13-slim-bookworm@sha256:… .
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_PYTHON=/opt/cmail-proxy/bin/python \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# What changes seldom comes first: this layer is kept until the pins change. Each file is checked against its hash, and
# all come built, since there is no compiler.
COPY constraints.txt ./
RUN python -m venv --without-pip /opt/cmail-proxy \
    && pip install --quiet --no-compile --require-hashes --only-binary :all: --requirement constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY mappings mappings
COPY charts/kustomize/sidecar charts/kustomize/sidecar
COPY proxy proxy
# The pins are the only source: the build backend is among them, and goes again. The compiled files do not look at the
# times of their sources, which a copy may change.
RUN pip install --quiet --no-compile --no-deps --no-build-isolation --no-index . \
    && pip uninstall --quiet --yes hatchling packaging pathspec pluggy tomlkit trove-classifiers \
    && pip check \
    && /opt/cmail-proxy/bin/python -m compileall -f -q --invalidation-mode unchecked-hash /opt/cmail-proxy/lib \
    && mkdir -p /var/lib/cmail-proxy

FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="cmail-proxy" \
      org.opencontainers.image.description="Transparent SMTP proxy: turns provider header fields into X-Cmail fields" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
# The base comes without compiled files of Python's own library, and with a read-only root none would ever be kept: each
# start would compile for a second. pip has no business where the program runs.
RUN python -m pip uninstall --quiet --yes --root-user-action ignore pip \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=builder /opt/cmail-proxy /opt/cmail-proxy
COPY --from=builder --chown=65532:65532 /var/lib/cmail-proxy /var/lib/cmail-proxy
ENV PATH=/opt/cmail-proxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    PYTHONUNBUFFERED=1
# Where data_dir is without any settings; settings in a file name it.
WORKDIR /var/lib/cmail-proxy
USER 65532:65532
# Mail, tracking links of route deliver, metrics and probes: the defaults of the settings.
EXPOSE 2525 8080 9025
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/cmail-proxy/bin/cmail-proxy"]
CMD ["serve"]
