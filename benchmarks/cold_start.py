"""What the first prediction costs a new user: processor time of a cold command, and sizes on disk.

    python benchmarks/cold_start.py [--image FILE] [--phrase "a dog"] [--rounds 5] [--python PATH] [--torch-python PATH]
        [--wheel FILE] [--json]

`predict_cpu_s` is the processor time (user and system, all threads, children included) of one
`python -m epmvg predict default IMAGE PHRASE` in a process of its own; `import_torch_cpu_s` that of
`python -c "import torch"`. The two take turns, after one uncounted turn that fills the disk cache and writes bytecode;
each figure is the median over the rounds. `installed_mb` is the size of all that `pip install epmvg` brings (no extras)
as it lies in the environment, `wheel_mb` that of the wheel.

`--python` is the environment that is measured, by default this one. `--torch-python` is one that has torch, for
environments that have none. Without `--wheel` the wheel is built by pip, which fetches what builds it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from reference.timing import interleaved

ROOT = Path(__file__).parents[1]


def installed_bytes() -> int:
    """Return the size of epmvg in this environment and of all that it requires without extras, bytecode aside."""
    found: dict[str, frozenset[str]] = {}
    waiting: list[tuple[str, frozenset[str]]] = [("epmvg", frozenset())]
    files = {path for path in package_folder().rglob("*") if path.is_file()}  # an editable install lists none of them
    while waiting:
        name, extras = waiting.pop()
        key = name.lower().replace("_", "-").replace(".", "-")
        if key in found and extras <= found[key]:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system
        found[key] = found.get(key, frozenset()) | extras
        waiting += required(distribution, found[key])
        files |= {Path(str(distribution.locate_file(file))).resolve() for file in distribution.files or ()}
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc" and file.is_file())


def package_folder() -> Path:
    found = find_spec("epmvg")
    assert found is not None and found.origin is not None
    return Path(found.origin).resolve().parent


def required(distribution: metadata.Distribution, extras: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    """Return name and extras of each package that a distribution, with extras of its own, requires here."""
    from packaging.requirements import Requirement  # the measured environment has it

    requirements = map(Requirement, distribution.requires or ())
    return [
        (one.name, frozenset(one.extras))
        for one in requirements
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def cpu_seconds(command: Sequence[str]) -> float:
    """Return the processor time of a command and its children.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout into a folder and return it."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("epmvg-*.whl")
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "photo.jpg")
    parser.add_argument("--phrase", default="the man")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="of the environment that is measured")
    parser.add_argument("--torch-python", help="of an environment that has torch, if that one has none")
    parser.add_argument("--wheel", type=Path, help="its size is told; built if not given")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--installed", action="store_true", help="print only the bytes installed in this environment")
    given = parser.parse_args()
    if given.installed:
        print(installed_bytes())
        return
    commands = {
        "predict": [given.python, "-m", "epmvg", "predict", "default", str(given.image), given.phrase],
        "import torch": [given.torch_python or given.python, "-c", "import torch"],
    }
    taken = interleaved([partial(cpu_seconds, command) for command in commands.values()], given.rounds)
    seconds = dict(zip(commands, map(statistics.median, taken), strict=True))
    installed = int(subprocess.run([given.python, __file__, "--installed"], check=True, capture_output=True).stdout)
    with tempfile.TemporaryDirectory() as folder:
        wheel = (given.wheel or build_wheel(Path(folder))).stat().st_size
    figures = {
        "predict_cpu_s": round(seconds["predict"], 3),
        "import_torch_cpu_s": round(seconds["import torch"], 3),
        "ratio": round(seconds["predict"] / seconds["import torch"], 3),
        "installed_mb": round(installed / 1e6, 1),
        "wheel_mb": round(wheel / 1e6, 1),
    }
    if given.json:
        print(json.dumps(figures))
        return
    print(f"predict, cold           {figures['predict_cpu_s']:8.2f} s of processor time")
    print(f"import torch            {figures['import_torch_cpu_s']:8.2f} s: ratio {figures['ratio']:.2f}")
    print(f"installed, no extras    {figures['installed_mb']:8.1f} MB")
    print(f"wheel                   {figures['wheel_mb']:8.1f} MB")


if __name__ == "__main__":
    main()
