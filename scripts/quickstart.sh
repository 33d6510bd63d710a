#!/usr/bin/env bash
# From nothing to a trained small model on a CPU: makes the environment, writes the sample survey, describes it,
# pre-trains the smallest model on it for a few minutes, and maps what the model makes of it. Safe to run again: the
# environment and the survey are kept, and each run trains in a new folder, quickstart_output/run-1, run-2, ...
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

step "1/4 The sample survey: gravity and magnetics of the same synthetic rocks, in sample_survey/"
"$PYTHON" -m scripts.make_sample_survey --output_dir sample_survey

step "2/4 What training will read"
"$PYTHON" -m scripts.describe_grids "${survey[@]}"

step "3/4 Pre-training, a few minutes; results go to $output"
"$PYTHON" -m main_pretrain "${survey[@]}" "${training[@]}" --output_dir "$output" --log_dir "$output" "$@"

step "4/4 Maps of the whole survey, in $output/maps"
for kind in embeddings reconstruction gapfill superresolution; do
    "$PYTHON" -m main_inference --checkpoint "$output/checkpoint-last.pth" --output "$kind" --output_dir "$output/maps" \
        --clusters 6
done

picture="$(find "$output" -maxdepth 1 -name '*.png' | sort | tail -n 1)"
step "Done. What it left:"
echo "checkpoint:  $output/checkpoint-last.pth"
echo "curves:      $PYTHON -m tensorboard.main --logdir $output"
echo "picture:     ${picture:-none}   (input, masked input, reconstruction, target and error per layer and scale)"
echo "maps:        $output/maps   (GeoTIFFs for a GIS, each with a picture beside it:)"
find "$output/maps" -name '*.png' 2>/dev/null | sort | sed 's/^/             /' || true
