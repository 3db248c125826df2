# xclip-jax on NVIDIA GPUs; CUDA comes with JAX's wheels, the host needs a driver alone. Written, not
# built by the authors:
#   docker build -f docker/cuda.Dockerfile -t xclip-jax:cuda .
#   docker run --rm --gpus all --shm-size 16g -v "$PWD:/data" xclip-jax:cuda \
#     train --config k400_b16_8f --workdir runs/k400 --config.data.root=/data/k400
FROM python:3.13-slim
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY xclip_jax xclip_jax
COPY configs configs
RUN pip install --no-cache-dir ".[gpu]"
WORKDIR /data
ENTRYPOINT ["xclip"]
CMD ["--help"]
