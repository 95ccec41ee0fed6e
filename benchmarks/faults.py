"""Faults that are inflicted on real trainings, and what the command line says of each, as a Markdown table.

    python benchmarks/faults.py [--only NAME] [--json]

Disks are filled and made read-only by mounting a small tmpfs, which needs root; rights are taken from root itself by
dropping CAP_DAC_OVERRIDE. "lost" is what could not be gone on with after the cause was gone: nothing, for all of them.
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

Fault = Callable[["Room"], tuple[int, str, bool]]
"""Returns the exit status, what was said last, and whether everything could be gone on with."""


class Room:
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
        said, _ = process.communicate()
        assert "Traceback" not in said, said
        lines = [line for line in said.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("error: ", "warning: ", "stopped "))]
        return process.returncode, (telling or lines)[-1].replace(str(self.folder) + "/", "").strip()

    def goes_on(self, *settings: str, out: Path | None = None) -> bool:
        return self.train(*settings, out=out, resume=((out or self.run) / "config.yaml").exists())[0] == 0

    def wait_for_a_row(self, out: Path | None = None) -> None:
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


def full_disk(room: Room) -> tuple[int, str, bool]:
    """The disk fills up between two saved states."""
    with small_disk(room.folder / "disk", "128m") as disk:
        out = disk / "run"
        process = room.start("train.epochs=8", out=out)
        while not (out / "state" / "last.pt").exists():
            time.sleep(0.01)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(max(0, free - 100_000)))
        said, _ = process.communicate()
        (disk / "filler").unlink()
        line = said.strip().splitlines()[-1].replace(str(room.folder) + "/", "")
        whole = not list(out.rglob("*.part")) and (out / "state" / "last.pt").exists()
        again = room.start("train.epochs=8", out=out, resume=True)
        return process.returncode, line, whole and again.wait() == 0


def read_only_folder(room: Room) -> tuple[int, str, bool]:
    """The folder for runs belongs to somebody else."""
    closed = room.folder / "closed"
    closed.mkdir(mode=0o555)
    status, line = room.train(out=closed / "run", prefix=AS_A_USER)
    return status, line, room.goes_on(out=room.folder / "open")


def read_only_disk(room: Room) -> tuple[int, str, bool]:
    """The disk for runs is mounted read-only."""
    with small_disk(room.folder / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        status, line = room.train(out=disk / "run")
    return status, line, room.goes_on()


def unreadable_picture(room: Room) -> tuple[int, str, bool]:
    """The right to read a picture is taken away in mid-training."""
    process = room.start("train.epochs=6", prefix=AS_A_USER)
    room.wait_for_a_row()
    (room.scenes / "images" / "train-00003.jpg").chmod(0)
    said, _ = process.communicate()
    line = next(line for line in said.splitlines() if "left out" in line)
    return process.returncode, line.replace(str(room.folder) + "/", ""), True


def vanished_picture(room: Room) -> tuple[int, str, bool]:
    """A picture is deleted in mid-training."""
    process = room.start("train.epochs=6")
    room.wait_for_a_row()
    (room.scenes / "images" / "train-00003.jpg").unlink()
    said, _ = process.communicate()
    line = next(line for line in said.splitlines() if "left out" in line)
    return process.returncode, line.replace(str(room.folder) + "/", ""), True


def vanished_folder(room: Room) -> tuple[int, str, bool]:
    """All pictures are gone in mid-training: their disk was unmounted."""
    process = room.start("train.epochs=6", "data.num_workers=1")
    room.wait_for_a_row()
    (room.scenes / "images").rename(room.scenes / "away")
    said, _ = process.communicate()
    (room.scenes / "away").rename(room.scenes / "images")
    line = said.strip().splitlines()[-1].replace(str(room.folder) + "/", "")
    return process.returncode, line, room.goes_on("train.epochs=6", "data.num_workers=1")


def missing_validation_picture(room: Room) -> tuple[int, str, bool]:
    """A picture of the validation split is not there."""
    picture = room.scenes / "images" / "val-00003.jpg"
    content = picture.read_bytes()
    picture.unlink()
    status, line = room.train()
    picture.write_bytes(content)
    return status, line, room.goes_on()


def no_number(room: Room) -> tuple[int, str, bool]:
    """A learning rate so high that weights overflow."""
    wild = [
        "train.lr=1e38",
        "train.lr_backbone=1e38",
        "train.lr_visual_encoder=1e38",
        "train.lr_text_encoder=1e38",
        "train.epochs=4",
    ]
    status, line = room.train(*wild)
    return status, line, any(room.run.glob("batch-*.safetensors"))


def torn_state(room: Room) -> tuple[int, str, bool]:
    """The last saved state is cut in half."""
    room.train()
    last = room.run / "state" / "last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    status, line = room.train(resume=True)
    return status, line, status == 0


def flipped_bit(room: Room) -> tuple[int, str, bool]:
    """One bit in the middle of the last saved state is flipped."""
    room.train()
    last = room.run / "state" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    status, line = room.train(resume=True)
    return status, line, status == 0


def both_states_damaged(room: Room) -> tuple[int, str, bool]:
    """Both saved states are damaged; the best weights are files of their own."""
    room.train()
    for file in (room.run / "state").iterdir():
        file.write_bytes(file.read_bytes()[:-1000])
    status, line = room.train(resume=True)
    return status, line, room.goes_on(f"model.init_from={room.run}", out=room.folder / "second")


def two_at_once(room: Room) -> tuple[int, str, bool]:
    """A second training is started in the folder of one that is going on."""
    process = room.start("train.epochs=6")
    room.wait_for_a_row()
    status, line = room.train("train.epochs=6", resume=True)
    return status, line, process.wait() == 0


def two_from_nothing(room: Room) -> tuple[int, str, bool]:
    """Two trainings are started in one new folder in the same moment."""
    both = [room.start() for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    states = sorted(process.returncode for process in both)
    line = next(text.strip().splitlines()[-1] for text, each in zip(said, both, strict=True) if each.returncode == 2)
    return states[1], line.replace(str(room.folder) + "/", ""), states == [0, 2]


def out_of_memory(room: Room) -> tuple[int, str, bool]:
    """The process may take 6 GB of addresses, and a batch wants more."""
    limit = ["prlimit", "--as=6000000000"]
    status, line = room.train("model.image_size=1024", "data.batch_size=160", prefix=limit)
    return status, line, not (room.run / "state").exists() and room.goes_on(out=room.folder / "second")


def plain_ascii(room: Room) -> tuple[int, str, bool]:
    """A terminal of the C locale without UTF-8, and a phrase with other letters."""
    rows = room.scenes / "annotations.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("the ", "thé İı "), encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    status, _ = room.train(**ascii_only)
    verb = [
        sys.executable,
        "-m",
        "epmvg",
        "predict",
        str(room.run),
        str(room.scenes / "images/val-00000.jpg"),
        "café İ",
    ]
    done = subprocess.run(verb, env=os.environ | ascii_only, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if "caf" in line), done.stderr)
    return max(status, done.returncode), " ".join(line.split()), status == 0


def clock_backwards(room: Room) -> tuple[int, str, bool]:
    """The system's clock runs backwards by an hour a second (time.time, patched in every process of the training)."""
    hook = room.folder / "hook"
    hook.mkdir()
    patch = "import time\n_real, _start = time.time, time.time()\n"
    patch += "time.time = lambda: _start - 3600 * (_real() - _start)\n"
    (hook / "sitecustomize.py").write_text(patch)
    path = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    process = room.start("train.epochs=6", PYTHONPATH=path)
    room.wait_for_a_row()
    process.kill()
    process.wait()
    status, line = room.train("train.epochs=6", resume=True, PYTHONPATH=path)
    lines = (room.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(row)["seconds"] for row in lines]
    return status, line, seconds == sorted(seconds) and seconds[0] >= 0


FAULTS: list[Fault] = [
    *(full_disk, read_only_folder, read_only_disk, unreadable_picture, vanished_picture, vanished_folder),
    *(missing_validation_picture, no_number, torn_state, flipped_bit, both_states_damaged, two_at_once),
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
            status, said, kept = fault(Room(Path(folder)))
        what = (fault.__doc__ or "").strip().rstrip(".")
        rows.append({"fault": what, "status": status, "said": said, "nothing_lost": kept})
        if not options.json:
            print(f"| {what} | {status} | `{said}` | {'nothing' if kept else 'SOMETHING'} |", flush=True)
    if options.json:
        print(json.dumps({"faults": len(rows), "nothing_lost": all(row["nothing_lost"] for row in rows), "rows": rows}))


if __name__ == "__main__":
    main()
