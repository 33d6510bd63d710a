#!/usr/bin/env bash
# Pre-trains on the GPUs of one machine, one process each, and goes on from the newest good checkpoint if there is one.
#
#   bash scripts/pretrain_torchrun.sh layers.csv output_dir [further options of main_pretrain]
#
# Expected use: 8 GPUs; GPUS=4 takes four. The effective batch is batch_size x accum_iter x GPUs, 512 tiles as it stands:
# keep it when changing the number of GPUs by changing --accum_iter, and training takes the same course.
# If one process fails, torchrun stops all and starts them again up to twice, from the last checkpoint (RESTARTS=9: up to
# nine times); at most --save_minutes of work are done again. Several machines: docs/pretraining.md. Ctrl-C or SIGTERM
# to torchrun saves a checkpoint and ends the run; torchrun waits five minutes for that (30 s with torch 2.7).
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/pretrain_torchrun.sh layers.csv output_dir [further options of main_pretrain]" >&2
    exit 2
fi
layers="$(realpath "$1")" output="$(realpath -m "$2")"
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}" # per process; torchrun would set 1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="${GPUS:-8}" --max-restarts="${RESTARTS:-2}" \
    main_pretrain.py --device cuda --amp auto --model mae_vit_base_patch16 \
    --train_path "$layers" --output_dir "$output" --log_dir "$output" \
    --batch_size 64 --accum_iter 1 --num_workers 6 --resume auto "$@"
