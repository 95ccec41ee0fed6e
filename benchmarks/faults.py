"""Faults that are inflicted on real trainings, and the messages of the command line, as a Markdown table.

    python benchmarks/faults.py [--only NAME] [--json]

Disks are filled and made read-only by mounting a small tmpfs, which needs root; rights are taken from root itself by
dropping CAP_DAC_OVERRIDE. "lost" is what could not be resumed after the cause was removed: nothing, for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from epmvg.data.synthetic.scenes import write_scenes

SETTINGS = [
    *(
        "model={name: tiny-resnet, pretrained: false}",
        "distill=null",
        "data.batch_size=16",
        "data.phrases_per_image=4",
    ),
    *(
        "train.cache_features=false",
        "train.precision=fp32",
        "train.epochs=2",
        "train.save_interval=5",
        "train.log_interval=2",
    ),
    *("train.eval_interval=1", "train.eval_limit=20", "train.warmup_steps=0"),
]
AS_A_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]

Fault = Callable[["Workspace"], tuple[int, str, bool]]
"""Returns the exit status, what was output last, and whether everything could be gone on with."""


class Workspace:
    """A folder with scenes and a run in it.

    Args:
        folder: where all of it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scenes = write_scenes(folder / "scenes", sizes={"train": 30, "val": 8, "test": 2, "open": 2}, side=64)
        self.run = folder / "run"

    def start(
        self, *settings: str, out: Path | None = None, resume: bool = False, prefix: list[str] | None = None, **env: str
    ) -> subprocess.Popen[str]:
        verb = [sys.executable, "-m", "epmvg", "train", "scenes", *SETTINGS, f"data.root={self.scenes}", *settings]
        fixed = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "COLUMNS": "400"}
        return subprocess.Popen(
            [*(prefix or []), *verb, "--out", str(out or self.run), *(["--resume"] if resume else [])],
            env=os.environ | fixed | {"EPMVG_CACHE": str(self.folder / "cache")} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def train(self, *settings: str, **how: Any) -> tuple[int, str]:
        """Train to the end or the fault; return the exit status and the last line about it."""
        process = self.start(*settings, **how)
        output, _ = process.communicate()
        assert "Traceback" not in output, output
        lines = [line for line in output.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("error: ", "warning: ", "stopped "))]
        return process.returncode, (telling or lines)[-1].replace(str(self.folder) + "/", "").strip()

    def resumes(self, *settings: str, out: Path | None = None) -> bool:
        return self.train(*settings, out=out, resume=((out or self.run) / "config.yaml").exists())[0] == 0

    def wait_for_metrics(self, out: Path | None = None) -> None:
        while not ((out or self.run) / "metrics.jsonl").exists():
            time.sleep(0.01)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(workspace: Workspace) -> tuple[int, str, bool]:
    """The disk fills up between two checkpoints."""
    with small_disk(workspace.folder / "disk", "128m") as disk:
        out = disk / "run"
        process = workspace.start("train.epochs=8", out=out)
        while not (out / "checkpoint" / "last.pt").exists():
            time.sleep(0.01)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(max(0, free - 100_000)))
        output, _ = process.communicate()
        (disk / "filler").unlink()
        line = output.strip().splitlines()[-1].replace(str(workspace.folder) + "/", "")
        whole = not list(out.rglob("*.part")) and (out / "checkpoint" / "last.pt").exists()
        again = workspace.start("train.epochs=8", out=out, resume=True)
        return process.returncode, line, whole and again.wait() == 0


def read_only_folder(workspace: Workspace) -> tuple[int, str, bool]:
    """The folder for runs belongs to somebody else."""
    closed = workspace.folder / "closed"
    closed.mkdir(mode=0o555)
    status, line = workspace.train(out=closed / "run", prefix=AS_A_USER)
    return status, line, workspace.resumes(out=workspace.folder / "open")


def read_only_disk(workspace: Workspace) -> tuple[int, str, bool]:
    """The disk for runs is mounted read-only."""
    with small_disk(workspace.folder / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        status, line = workspace.train(out=disk / "run")
    return status, line, workspace.resumes()


def unreadable_image(workspace: Workspace) -> tuple[int, str, bool]:
    """The right to read a image is taken away in mid-training."""
    process = workspace.start("train.epochs=6", prefix=AS_A_USER)
    workspace.wait_for_metrics()
    (workspace.scenes / "images" / "train-00003.jpg").chmod(0)
    output, _ = process.communicate()
    line = next(line for line in output.splitlines() if "skipped so far" in line)
    return process.returncode, line.replace(str(workspace.folder) + "/", ""), True


def vanished_image(workspace: Workspace) -> tuple[int, str, bool]:
    """A image is deleted in mid-training."""
    process = workspace.start("train.epochs=6")
    workspace.wait_for_metrics()
    (workspace.scenes / "images" / "train-00003.jpg").unlink()
    output, _ = process.communicate()
    line = next(line for line in output.splitlines() if "skipped so far" in line)
    return process.returncode, line.replace(str(workspace.folder) + "/", ""), True


def vanished_folder(workspace: Workspace) -> tuple[int, str, bool]:
    """All images are gone in mid-training: their disk was unmounted."""
    process = workspace.start("train.epochs=6", "data.num_workers=1")
    workspace.wait_for_metrics()
    (workspace.scenes / "images").rename(workspace.scenes / "away")
    output, _ = process.communicate()
    (workspace.scenes / "away").rename(workspace.scenes / "images")
    line = output.strip().splitlines()[-1].replace(str(workspace.folder) + "/", "")
    return process.returncode, line, workspace.resumes("train.epochs=6", "data.num_workers=1")


def missing_validation_image(workspace: Workspace) -> tuple[int, str, bool]:
    """A image of the validation split is not there."""
    image = workspace.scenes / "images" / "val-00003.jpg"
    content = image.read_bytes()
    image.unlink()
    status, line = workspace.train()
    image.write_bytes(content)
    return status, line, workspace.resumes()


def nan_weights(workspace: Workspace) -> tuple[int, str, bool]:
    """A learning rate so high that weights overflow."""
    wild = [
        "train.lr=1e38",
        "train.lr_backbone=1e38",
        "train.lr_visual_encoder=1e38",
        "train.lr_text_encoder=1e38",
        "train.epochs=4",
    ]
    status, line = workspace.train(*wild)
    return status, line, "NaN" in line or "nan" in line


def torn_checkpoint(workspace: Workspace) -> tuple[int, str, bool]:
    """The last checkpoint is cut in half."""
    workspace.train()
    last = workspace.run / "checkpoint" / "last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    status, line = workspace.train(resume=True)
    return status, line, status == 0


def flipped_bit(workspace: Workspace) -> tuple[int, str, bool]:
    """One bit in the middle of the last checkpoint is flipped."""
    workspace.train()
    last = workspace.run / "checkpoint" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    status, line = workspace.train(resume=True)
    return status, line, status == 0


def both_checkpoints_damaged(workspace: Workspace) -> tuple[int, str, bool]:
    """Both checkpoints are damaged; the best weights are files of their own."""
    workspace.train()
    for file in (workspace.run / "checkpoint").iterdir():
        file.write_bytes(file.read_bytes()[:-1000])
    status, line = workspace.train(resume=True)
    return status, line, workspace.resumes(f"model.init_from={workspace.run}", out=workspace.folder / "second")


def two_at_once(workspace: Workspace) -> tuple[int, str, bool]:
    """A second training is started in the folder of one that is going on."""
    process = workspace.start("train.epochs=6")
    workspace.wait_for_metrics()
    status, line = workspace.train("train.epochs=6", resume=True)
    return status, line, process.wait() == 0


def two_from_nothing(workspace: Workspace) -> tuple[int, str, bool]:
    """Two trainings are started in one new folder in the same moment."""
    both = [workspace.start() for _ in range(2)]
    output = [process.communicate()[0] for process in both]
    states = sorted(process.returncode for process in both)
    line = next(text.strip().splitlines()[-1] for text, each in zip(output, both, strict=True) if each.returncode == 2)
    return states[1], line.replace(str(workspace.folder) + "/", ""), states == [0, 2]


def out_of_memory(workspace: Workspace) -> tuple[int, str, bool]:
    """The process may take 6 GB of addresses, and a batch wants more."""
    limit = ["prlimit", "--as=6000000000"]
    status, line = workspace.train("model.image_size=1024", "data.batch_size=160", prefix=limit)
    return (
        status,
        line,
        not (workspace.run / "checkpoint").exists() and workspace.resumes(out=workspace.folder / "second"),
    )


def plain_ascii(workspace: Workspace) -> tuple[int, str, bool]:
    """A terminal of the C locale without UTF-8, and a phrase with other letters."""
    rows = workspace.scenes / "annotations.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("the ", "thé İı "), encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    status, _ = workspace.train(**ascii_only)
    verb = [
        sys.executable,
        "-m",
        "epmvg",
        "predict",
        str(workspace.run),
        str(workspace.scenes / "images/val-00000.jpg"),
        "café İ",
    ]
    done = subprocess.run(verb, env=os.environ | ascii_only, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if "caf" in line), done.stderr)
    return max(status, done.returncode), " ".join(line.split()), status == 0


def clock_backwards(workspace: Workspace) -> tuple[int, str, bool]:
    """The system's clock runs backwards by an hour a second (time.time, patched in every process of the training)."""
    hook = workspace.folder / "hook"
    hook.mkdir()
    patch = "import time\n_real, _start = time.time, time.time()\n"
    patch += "time.time = lambda: _start - 3600 * (_real() - _start)\n"
    (hook / "sitecustomize.py").write_text(patch)
    path = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    process = workspace.start("train.epochs=6", PYTHONPATH=path)
    workspace.wait_for_metrics()
    process.kill()
    process.wait()
    status, line = workspace.train("train.epochs=6", resume=True, PYTHONPATH=path)
    lines = (workspace.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(row)["seconds"] for row in lines]
    return status, line, seconds == sorted(seconds) and seconds[0] >= 0


FAULTS: list[Fault] = [
    *(full_disk, read_only_folder, read_only_disk, unreadable_image, vanished_image, vanished_folder),
    *(missing_validation_image, nan_weights, torn_checkpoint, flipped_bit, both_checkpoints_damaged, two_at_once),
    *(two_from_nothing, out_of_memory, plain_ascii, clock_backwards),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the name of one fault")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rows = []
    for fault in FAULTS:
        if options.only not in (None, fault.__name__):
            continue
        with tempfile.TemporaryDirectory() as folder:
            status, output, kept = fault(Workspace(Path(folder)))
        what = (fault.__doc__ or "").strip().rstrip(".")
        rows.append({"fault": what, "status": status, "output": output, "nothing_lost": kept})
        if not options.json:
            print(f"| {what} | {status} | `{output}` | {'nothing' if kept else 'SOMETHING'} |", flush=True)
    if options.json:
        print(json.dumps({"faults": len(rows), "nothing_lost": all(row["nothing_lost"] for row in rows), "rows": rows}))


if __name__ == "__main__":
    main()
