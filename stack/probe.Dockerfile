# How is a container asked how it is, whose image holds one program and nothing else? By the wget of a busybox beside it.
# docker-compose.yml gives IMAGE, and in KEPT the folder that a volume is mounted over. The image's program and entry point stay as they are.
ARG IMAGE=scratch
ARG KEPT=/var/lib/kept

FROM busybox:1.37.0-musl AS busybox
# A volume takes the owner of the folder that it is mounted over.
RUN mkdir -m 0750 /kept \
 && chown 10001:10001 /kept

# hadolint ignore=DL3006
FROM ${IMAGE}
ARG KEPT
COPY --from=busybox /bin/busybox /bin/busybox
COPY --from=busybox --chown=10001:10001 /kept ${KEPT}
