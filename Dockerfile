# hadolint global ignore=DL3013
# A server for the CPU, of the newest run in a mounted folder, or of the network that comes with the package. INDEX is the one
# of CPU packages that pytorch.org/get-started names; without it torch brings the CUDA libraries, a few GB.
#   docker build --build-arg TORCH_INDEX=INDEX -t mnist-lightning .
#   docker run -p 127.0.0.1:8000:8000 -v ./lightning_logs:/home/digits/lightning_logs mnist-lightning
FROM python:3.11-slim AS packages
ARG TORCH_INDEX
ENV PIP_NO_CACHE_DIR=1 PATH=/venv/bin:$PATH TORCH=/venv/lib/python3.11/site-packages/torch
# torch and torchvision must come from one place.
RUN python -m venv /venv && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
# It holds the version. The other files come later: a change to them does not install all packages again.
COPY mnist_lightning/__init__.py mnist_lightning/
# torch's own tests and C++ headers are 145 MB.
RUN pip install ".[serve,export,scans]" && rm -rf $TORCH/test $TORCH/include

FROM packages AS project
COPY mnist_lightning mnist_lightning
RUN pip install --no-deps --target /project .

FROM python:3.11-slim
# Kept drawings go into data/. 1000 is the first user's number on most machines, who then owns what is written.
RUN useradd --create-home --uid 1000 digits && install -d -o digits -g digits /home/digits/data /home/digits/lightning_logs
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /home/digits
EXPOSE 8000
# Docker may set a proxy, which must not be asked.
HEALTHCHECK --start-period=60s --timeout=5s CMD ["python", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "mnist_lightning"]
CMD ["serve", "--host", "0.0.0.0"]
COPY --from=packages /venv /venv
COPY --from=project /project /venv/lib/python3.11/site-packages
USER 1000
