"""A training killed at random moments against one that was never stopped: the same weights, bit by bit.

    python benchmarks/kill_and_resume.py --kills 20 --json

A small student learns from drawn scenes beside a frozen teacher with random weights, in fp32 on the CPU with one
thread. The same recipe is started again, killed by SIGKILL, resumed, killed, and so on: in turn at a random moment of
learning, while a file is being written, and while the run is starting up or being restored. At its end weights,
optimiser state, random numbers, the model that would be used and every figure of metrics.jsonl but the clock's are
compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from epmvg.data.synthetic.scenes import write_scenes

TEACHER = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SETTINGS = [
    *("model={name: tiny-resnet, pretrained: false, dense_head: true, similarity: true, iou_head: true}",),
    *(
        "data.batch_size=16",
        "data.phrases_per_image=4",
        "data.augment={}",
        "train.cache_features=false",
        "train.precision=fp32",
    ),
    *("train.epochs=6", "train.lr=1e-3", "train.lr_backbone=1e-3", "train.warmup_steps=10", "train.max_grad_norm=1"),
    *("train.save_interval=7", "train.log_interval=5", "train.eval_interval=0.5", "train.eval_limit=40"),
]
CLOCK = ("seconds", "images_per_s", "phrases_per_s")


def command(workspace: Path, name: str, *, resume: bool) -> list[str]:
    own = [
        f"data.root={workspace / 'scenes'}",
        f"distill.teacher={workspace / 'teacher.json'}",
        "distill.pretrained=random",
    ]
    verb = [sys.executable, "-m", "epmvg", "train", "scenes", *SETTINGS, *own, "--out", str(workspace / name)]
    return [*verb, "--resume"] if resume else verb


def start(workspace: Path, name: str, *, resume: bool) -> subprocess.Popen[bytes]:
    fixed = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | fixed | {"EPMVG_CACHE": str(workspace / f"cache-{name}")}
    with (workspace / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command(workspace, name, resume=resume), stdout=log, stderr=log, env=environment)


def run_whole(workspace: Path) -> tuple[float, float]:
    """Train without a break; return the seconds until the first row of metrics, and those after it."""
    begun = time.monotonic()
    process = start(workspace, "whole", resume=False)
    while process.poll() is None and not (workspace / "whole" / "metrics.jsonl").exists():
        time.sleep(0.005)
    ready = time.monotonic()
    if process.wait() != 0:
        raise SystemExit((workspace / "whole.log").read_text())
    return ready - begun, time.monotonic() - ready


def is_writing(folder: Path) -> bool:
    """Return whether a file of the run stands under its temporary name."""
    return any(folder.glob(".*.part")) or any(folder.glob("checkpoint/.*.part"))


def kill_once(workspace: Path, folder: Path, when: str, ready: float, share: float) -> bool:
    """Start or resume the run and kill it at a random moment; return whether it was still running."""
    process = start(workspace, folder.name, resume=(folder / "config.yaml").exists())
    log = folder / "metrics.jsonl"
    known = log.stat().st_size if log.exists() else 0
    if when != "starting":
        while process.poll() is None and not (log.exists() and log.stat().st_size != known):
            time.sleep(0.005)
    moment = time.monotonic() + random.uniform(0, ready if when == "starting" else share)
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.001)
    while process.poll() is None and when == "writing" and not is_writing(folder):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def difference(one: Any, other: Any, where: str = "checkpoint") -> str | None:
    """Name the first thing in which two checkpoints differ, or None; tensors are compared bit by bit."""
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (one, other)))
        return None if same else where
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return where
        return next((d for key in one if (d := difference(one[key], other[key], f"{where}.{key}"))), None)
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return where
        pairs = enumerate(zip(one, other, strict=True))
        return next((d for i, (a, b) in pairs if (d := difference(a, b, f"{where}[{i}]"))), None)
    return None if one == other else where


def outcome(folder: Path) -> dict[str, Any]:
    """Return all that a run leaves, without the times."""
    checkpoint = torch.load(folder / "checkpoint" / "last.pt", weights_only=True)
    del checkpoint["state"]["seconds"]
    for means in checkpoint["means"]:
        del means["since"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]
    names = ["model.safetensors", "model.yaml", *(file.name for file in sorted(folder.glob("predictions-*.jsonl")))]
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    return {"last": checkpoint, "metrics": rows, "files": files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        write_scenes(workspace / "scenes", sizes={"train": 60, "val": 15, "test": 5, "open": 5, "captions": 5}, side=96)
        (workspace / "teacher.json").write_text(json.dumps(TEACHER))
        ready, seconds = run_whole(workspace)
        wanted = outcome(workspace / "whole")
        moments = dict.fromkeys(("learning", "writing", "starting"), 0)
        turns = cycle(moments)
        differences: list[str | None] = []
        while sum(moments.values()) < options.kills:  # one run may come to its end before all kills are spent
            folder = workspace / f"killed-{len(differences)}"
            while sum(moments.values()) < options.kills:
                when = next(turns)
                if not kill_once(workspace, folder, when, ready, seconds / options.kills):
                    break
                moments[when] += 1
            if start(workspace, folder.name, resume=(folder / "config.yaml").exists()).wait() != 0:
                raise SystemExit((workspace / f"{folder.name}.log").read_text())
            differences.append(difference(wanted, outcome(folder)))
    first = next((one for one in differences if one is not None), None)
    result = {
        "kills": sum(moments.values()),
        "identical": first is None,
        "differs": first,
        "killed_while": moments,
        "killed_runs": len(differences),
        "steps": wanted["last"]["state"]["step"],
        "tensors": sum(isinstance(value, torch.Tensor) for value in wanted["last"]["model"].values()),
        "metrics_rows": len(wanted["metrics"]),
        "uninterrupted_seconds": round(ready + seconds, 1),
    }
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))
    sys.exit(0 if first is None else 1)


if __name__ == "__main__":
    main()
