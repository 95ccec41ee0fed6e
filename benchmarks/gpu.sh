#!/usr/bin/env bash
# What a CUDA machine does with this code: step times in fp32 and bf16 by batch size, peak memory, and a longer training.
#   benchmarks/gpu.sh OUT [DATA]     DATA: a folder with annotations.jsonl (flickr-mini); drawn scenes without it
set -euo pipefail
out=$1
data=${2:-}
mkdir -p "$out"
python - "$out" <<'PYTHON'
import json, statistics, sys, time
import torch
from epmvg.distill.losses import GroundingLoss
from epmvg.models.factory import create_model

rows = []
for name, batches in (("mini", (64, 256, 1024)), ("transvg-r50", (8, 32, 64))):
    for precision in (torch.float32, torch.bfloat16):
        for batch in batches:
            model = create_model(name).cuda().train()
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
            images, side = max(1, batch // 8), model.canvas
            image = torch.rand(images, 3, side, side, device="cuda")
            pad = torch.zeros(images, side, side, dtype=torch.bool, device="cuda")
            tokens, token_pad = (t.cuda() for t in model.tokenize(["a man in a blue shirt"] * batch))
            owner = torch.arange(batch, device="cuda") * images // batch
            target = torch.rand(batch, 4, device="cuda") * 0.4 + 0.3
            torch.cuda.reset_peak_memory_stats()
            taken = []
            for step in range(8):
                torch.cuda.synchronize()
                start = time.perf_counter()
                with torch.autocast("cuda", torch.bfloat16, enabled=precision is torch.bfloat16):
                    output = model(image, pad, tokens, token_pad, owner)
                GroundingLoss()(output, target).total.backward()
                optimizer.step()
                optimizer.zero_grad()
                torch.cuda.synchronize()
                if step >= 3:
                    taken.append(time.perf_counter() - start)
            seconds = statistics.median(taken)
            rows.append({"model": name, "precision": str(precision), "batch": batch, "phrases_per_s": round(batch / seconds, 1),
                         "peak_mb": round(torch.cuda.max_memory_allocated() / 1e6)})
            print(rows[-1], flush=True)
            del model, optimizer
json.dump({"gpu": torch.cuda.get_device_name(), "rows": rows}, open(f"{sys.argv[1]}/gpu.json", "w"), indent=1)
PYTHON
if [ -n "$data" ]; then
  timeout 900 python -m epmvg train flickr-mini "data.root=$data" data.workers=8 train.epochs=8 train.precision=bf16 --out "$out/flickr-mini"
  python -m epmvg evaluate "$out/flickr-mini" --split test --json "$out/flickr-mini-test.json"
else
  timeout 900 python -m epmvg train scenes train.epochs=6 train.precision=bf16 --out "$out/scenes"
  python -m epmvg evaluate "$out/scenes" --split test --json "$out/scenes-test.json"
fi
