#!/usr/bin/env bash
# What a CUDA machine does with this code, within MINUTES (24): speed and memory by precision, batch size and compilation
# (two fifths of the time), then a longer training in bf16 (half of it) and its score.
#   [MINUTES=24] benchmarks/gpu.sh OUT [DATA]   DATA: a folder with annotations.jsonl (flickr-mini); drawn scenes without it
#   benchmarks/gpu.sh OUT --smoke               the same steps on the CPU, as small as they get, to see that they run
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  echo "usage: $0 OUT [DATA | --smoke]" >&2
  exit 2
fi
out=$1
data=${2:-}
minutes=${MINUTES:-24}
sweep=(--minutes "$((minutes * 3 / 8))")
recipe=scenes
settings=(train.epochs=6 data.num_workers=8 train.precision=bf16)
device=cuda
if [ "$data" = --smoke ]; then
  sweep=(--tiny)
  settings=(train.epochs=0.01 train.eval_limit=16 train.cache_features=false "model={name: tiny-resnet, pretrained: false}")
  device=cpu
elif [ -n "$data" ]; then
  recipe=flickr-mini
  settings+=(train.epochs=8 "data.root=$data")
fi
mkdir -p "$out"
timeout "$((minutes * 60 * 2 / 5))" python "$(dirname "$0")/gpu.py" "$out/gpu.json" "${sweep[@]}"
status=0
timeout "$((minutes * 60 / 2))" python -m epmvg train "$recipe" "${settings[@]}" --out "$out/run" || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 124 ]  # 124: out of time, and the best weights so far are there
timeout "$((minutes * 60 / 10))" python -m epmvg evaluate "$out/run" --split test --device "$device" --json > "$out/test.json"
