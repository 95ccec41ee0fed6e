#!/usr/bin/env bash
# What a CUDA machine does with this code, within 25 minutes: speed and memory by precision, batch size and compilation
# (10 minutes), then a longer training in bf16 (at most 13 minutes) and its score.
#   benchmarks/gpu.sh OUT [DATA]     DATA: a folder with annotations.jsonl (flickr-mini); drawn scenes without it
set -euo pipefail
out=$1
data=${2:-}
mkdir -p "$out"
timeout 660 python "$(dirname "$0")/gpu.py" "$out/gpu.json" --minutes 9
recipe=scenes
settings=(train.epochs=6)
if [ -n "$data" ]; then
  recipe=flickr-mini
  settings=(train.epochs=8 "data.root=$data")
fi
train() {
  timeout 780 python -m epmvg train "$recipe" "${settings[@]}" data.workers=8 train.precision=bf16 --out "$out/run"
}
train || [ $? -eq 124 ]  # out of time: the best weights so far are there
timeout 120 python -m epmvg evaluate "$out/run" --split test --json "$out/test.json"
