#!/usr/bin/env bash
# Pre-trains on one GPU, and goes on from the newest good checkpoint of the output folder if there is one.
#
#   bash scripts/pretrain_one_gpu.sh layers.csv output_dir [further options of main_pretrain]
#
# Expected use: a card with 16 GB or more and the base model. Mixed precision follows the card (bf16 from Ampere on, fp16
# with gradient scaling on a V100 or T4). Reduce --batch_size and raise --accum_iter by the same factor when memory is
# short; add --grad_checkpointing when that is not enough. On a V100 first: export GRIDMAE_LANE=v100
# Ctrl-C or SIGTERM saves a checkpoint and ends the run; the same command goes on from there.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/pretrain_one_gpu.sh layers.csv output_dir [further options of main_pretrain]" >&2
    exit 2
fi
layers="$(realpath "$1")" output="$(realpath -m "$2")"
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

exec "$PYTHON" -m main_pretrain --device cuda --amp auto --model mae_vit_base_patch16 \
    --train_path "$layers" --output_dir "$output" --log_dir "$output" \
    --batch_size 64 --accum_iter 4 --num_workers 8 --resume auto "$@"
