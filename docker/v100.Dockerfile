# GRID-MAE on NVIDIA cards from Tesla V100 on (torch 2.7.1 with CUDA 12.6). From the project's folder:
#   docker build -f docker/v100.Dockerfile -t gridmae:v100 .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -v "$PWD:/data" gridmae:v100 \
#       torch.distributed.run --standalone --nproc_per_node=8 -m main_pretrain --data_dir grids --output_dir out
# For cards of compute capability 7.5 and above, build with --build-arg CONSTRAINTS=constraints.txt.
FROM python:3.11-slim-bookworm

# CUDA comes with torch's wheels; the driver comes from the machine, by the NVIDIA container toolkit.
ARG CONSTRAINTS=constraints-v100.txt
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/gridmae
COPY requirements.txt requirements-xarray.txt constraints.txt constraints-v100.txt ./
RUN python -m pip install --no-cache-dir --disable-pip-version-check \
    -r requirements.txt -r requirements-xarray.txt -c "${CONSTRAINTS}"
COPY . .

# Found from any folder, run by any user.
ENV PYTHONPATH=/opt/gridmae PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
USER 1000
ENTRYPOINT ["python", "-m"]
CMD ["main_pretrain", "--help"]
