# xclip-jax on a CPU. Written, not built by the authors:
#   docker build -f docker/cpu.Dockerfile -t xclip-jax .
#   docker run --rm -v "$PWD:/data" xclip-jax classify clip.mp4 --weights toy
FROM python:3.13-slim
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY xclip_jax xclip_jax
COPY configs configs
RUN pip install --no-cache-dir .
WORKDIR /data
ENV JAX_PLATFORMS=cpu
ENTRYPOINT ["xclip"]
CMD ["--help"]
