# Builds from the package registry alone:
#
#   docker build -t coseg .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" coseg audit DIR training=none
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" --gpus all --shm-size 8g coseg run DIR
#
# DIR is a folder below the current one. Results are written below it too, as without a container.
#
# The registry's torch for Linux brings the libraries of CUDA along. For a smaller image give the address of an
# index that has builds of torch for CPUs: --build-arg TORCH_INDEX=ADDRESS
# Optional parts, as in pyproject.toml: --build-arg EXTRAS=medical,onnx
FROM python:3.11-slim

ARG TORCH_INDEX=""
ARG EXTRAS=""

# A user given by --user has no name and no home, which torch and matplotlib ask for.
ENV HOME=/home/coseg \
    USER=coseg \
    LOGNAME=coseg \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 coseg \
    && chmod 1777 /home/coseg \
    && install --directory --owner=coseg --mode=1777 /work

# By itself, so that a change of the code does not install it again. Versions are those that pyproject.toml allows.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --root-user-action=ignore \
    ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "torch>=2.6"

WORKDIR /opt/coseg-lightning
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY src src
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --root-user-action=ignore ".${EXTRAS:+[${EXTRAS}]}"

USER 1000:1000
WORKDIR /work
ENTRYPOINT ["coseg"]
CMD ["--help"]
