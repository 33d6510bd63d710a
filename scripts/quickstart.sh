#!/usr/bin/env bash
# From nothing to a trained small model on a CPU: makes the environment, writes the sample survey, describes it, and
# pre-trains the smallest model on it for a few minutes. Safe to run again: the environment and the survey are kept, and
# each run trains in a new folder, quickstart_output/run-1, run-2, ...
#
#   bash scripts/quickstart.sh [options of main_pretrain]        for example: bash scripts/quickstart.sh --epochs 20
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

survey=(--train_path sample_survey/layers.csv)
training=(--epochs 25 --warmup_epochs 2)

number=1
while [ -e "quickstart_output/run-$number" ]; do
    number=$((number + 1))
done
output="quickstart_output/run-$number"
mkdir -p "$output"

step() { printf '\n== %s\n' "$1"; }

step "1/3 The sample survey: gravity and magnetics of the same synthetic rocks, in sample_survey/"
"$PYTHON" -m scripts.make_sample_survey --output_dir sample_survey

step "2/3 What training will read"
"$PYTHON" -m scripts.describe_grids "${survey[@]}"

step "3/3 Pre-training, a few minutes; results go to $output"
"$PYTHON" -m main_pretrain "${survey[@]}" "${training[@]}" --output_dir "$output" --log_dir "$output" "$@"

picture="$(find "$output" -name '*.png' | sort | tail -n 1)"
step "Done. What it left:"
echo "checkpoint:  $output/checkpoint-last.pth"
echo "curves:      $PYTHON -m tensorboard.main --logdir $output"
echo "picture:     ${picture:-none}   (input, masked input, reconstruction, target and error per layer and scale)"
