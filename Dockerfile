# What is in the image? hopwatch in a virtual environment, and nothing that it was built with.
#   docker build --target hopwatch .   the collector, and the command line
#   docker build --target demo .       the same with the agents of the demo
# Who runs in it is user 10001. The root may be read-only; what is written goes to /var/lib/hopwatch.

FROM python:3.13.16-slim-trixie AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# The environment gets no pip of its own: nobody installs anything into it later.
RUN python -m venv --without-pip /opt/hopwatch \
 && python -m pip --python /opt/hopwatch/bin/python install -c constraints.txt '.[collector]'

FROM build AS build-demo
RUN python -m pip --python /opt/hopwatch/bin/python install -c constraints.txt '.[demo]'

FROM python:3.13.16-slim-trixie AS base
RUN groupadd --gid 10001 hopwatch \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/hopwatch --shell /usr/sbin/nologin hopwatch \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/hopwatch /var/lib/hopwatch/store /var/lib/hopwatch/boxes \
 && install -d -o 10001 -g 10001 -m 0750 /run/hopwatch
ENV PATH=/opt/hopwatch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOPWATCH_BLACKBOX=/var/lib/hopwatch/boxes
USER 10001:10001
WORKDIR /var/lib/hopwatch
ENTRYPOINT ["hopwatch"]

FROM base AS demo
COPY --from=build-demo /opt/hopwatch /opt/hopwatch
COPY src/hopwatch/demo/agents /opt/agents

# The last stage is what is built where no target is named.
FROM base AS hopwatch
COPY --from=build /opt/hopwatch /opt/hopwatch
EXPOSE 4317 4318
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:4318/healthz', timeout=4)"]
# In a container the collector has to listen at all addresses. So there has to be a token; without the file it does not start.
CMD ["serve", "--host", "0.0.0.0", "--store", "/var/lib/hopwatch/store/hopwatch.sqlite", "--token-file", "/run/hopwatch/token"]
