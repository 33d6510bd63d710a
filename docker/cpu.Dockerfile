# GRID-MAE on a CPU. From the project's folder:
#   docker build -f docker/cpu.Dockerfile -t gridmae:cpu .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" gridmae:cpu main_pretrain --data_dir grids --output_dir out
FROM python:3.11-slim-bookworm

# The wheels bring GDAL, PROJ and OpenMP along: nothing of the distribution is needed.
WORKDIR /opt/gridmae
COPY requirements.txt requirements-xarray.txt constraints.txt ./
# Give torch's index of CPU wheels with --build-arg PIP_EXTRA_INDEX_URL=..., or CUDA comes along.
ARG PIP_EXTRA_INDEX_URL
RUN python -m pip install --no-cache-dir --disable-pip-version-check \
    -r requirements.txt -r requirements-xarray.txt -c constraints.txt
COPY . .

# Found from any folder, run by any user.
ENV PYTHONPATH=/opt/gridmae PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
USER 1000
ENTRYPOINT ["python", "-m"]
CMD ["main_pretrain", "--help"]
