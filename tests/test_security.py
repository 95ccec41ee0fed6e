"""Security: no file can run code, refer outside its folder, exhaust memory or inject markup into a page."""

from __future__ import annotations

import ast
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import epmvg
from epmvg.cli import main
from epmvg.core.images import MAX_PIXELS, open_image
from epmvg.core.types import InputError
from epmvg.data.readers.files import path_inside
from epmvg.data.registry import open_samples
from epmvg.experiments.results import as_markdown
from epmvg.hub import model_card
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.models.weights_file import WEIGHTS, weights_digest

SOURCE = Path(epmvg.__file__).parent
CHECKOUT = Path(__file__).parents[1]
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>'

UNSAFE_MODULES = {"pickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "code", "telnetlib", "imp"}
UNSAFE_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"),
    *("yaml.full_load", "pandas.read_pickle", "torch.hub.load", "tempfile.mktemp", "jsonpickle.decode"),
}
SAFE_ONLY_WITH = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
UNSAFE_ARGUMENTS = {"shell", "allow_pickle", "trust_remote_code", "executable", "preexec_fn"}
UNSAFE_METHODS = {"extractall", "extract", "unpack_archive", "read_pickle", "to_pickle"}


def python_files() -> list[Path]:
    folders = [SOURCE, *(CHECKOUT / name for name in ("benchmarks", "examples", "scripts"))]
    return sorted(file for folder in folders if folder.is_dir() for file in folder.rglob("*.py"))


def only_restricts_pickle(tree: ast.AST) -> bool:
    """Return whether a program uses pickle only for unpicklers that override `find_class`."""
    used = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"]
    readers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and {"pickle.Unpickler", "pickle._Unpickler"} & {*map(ast.unparse, node.bases)}
    ]
    return (
        {name for name in used if not name.isupper()} <= {"Unpickler", "_Unpickler", "UnpicklingError"}
        and used.count("Unpickler") + used.count("_Unpickler") == len(readers) > 0
        and all("def find_class" in ast.unparse(reader) for reader in readers)
        and not any("super().find_class" in ast.unparse(reader) for reader in readers)
    )


def unsafe_uses(tree: ast.AST) -> list[str]:
    """Return the names of unsafe imports, calls and arguments of a program."""
    found = []
    unsafe_modules = UNSAFE_MODULES - ({"pickle"} if only_restricts_pickle(tree) else set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in unsafe_modules]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in UNSAFE_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
            wanted = SAFE_ONLY_WITH.get(name.replace("numpy.", "np."))
            unsafe = name in UNSAFE_CALLS or name.rsplit(".", 1)[-1] in UNSAFE_METHODS
            if unsafe or (wanted is not None and given.get(wanted[0]) != wanted[1]):
                found.append(name)
            found += [f"{name}({word}=...)" for word in UNSAFE_ARGUMENTS & given.keys() if given[word] != "False"]
    return found


def test_no_file_is_ever_executed() -> None:
    files = python_files()
    assert len(files) > 80
    assert {str(file): found for file in files if (found := unsafe_uses(ast.parse(file.read_text("utf-8"))))} == {}


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from pickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)", "eval(x)"),
        *("np.load(f)", "np.load(f, allow_pickle=True)", "yaml.load(f, Loader=yaml.Loader)", "tar.extractall(to)"),
        *("import pickle\nclass R(pickle.Unpickler): pass", "import pickle\nclass R(pickle._Unpickler): pass"),
        "import pickle\nclass R(pickle.Unpickler):\n def find_class(self, *a): return super().find_class(*a)",
        "import pickle\nclass R(pickle.Unpickler):\n def find_class(self, *a): return list\npickle.loads(x)",
        *("subprocess.run(x, shell=True)", "AutoModel.from_pretrained(n, trust_remote_code=True)", "os.system(x)"),
    ],
)
def test_the_scan_finds_unsafe_code(line: str) -> None:
    assert unsafe_uses(ast.parse(line))


class Bomb:
    """An object whose unpickling would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.marker, "executed")


def test_files_with_code_are_rejected_and_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle as weights to convert, and as the index of a published data set."""
    marker = tmp_path / "marker"
    torch.save({"model": Bomb(marker)}, tmp_path / "model.pth")
    index = tmp_path / "data" / "unc"
    index.mkdir(parents=True)
    torch.save([Bomb(marker)], index / "unc_train.pth")
    for arguments in (
        ["convert", tmp_path / "model.pth", "--as", "transvg", "--out", tmp_path / "out"],
        ["data", "stats", "refcoco", "--root", tmp_path / "data"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/passwd", "..", "a\0.png", "", "../root2/a.png"])
def test_paths_outside_the_root_are_rejected(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(InputError, match=r"is outside of|not the path of a file"):
        path_inside(root, name, "line 1")
    file = root / "rows.jsonl"
    file.write_text(json.dumps({"image": name, "phrase": "it", "bbox": [0, 0, 1, 1]}))
    with pytest.raises(InputError, match=r"is outside of|not the path of a file"):
        open_samples(str(file), split=None)


def test_oversized_images_are_rejected_by_their_header(tmp_path: Path) -> None:
    """A few bytes that declare an image of gigabytes are rejected without decoding."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for width, height in ((2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1), (10_001, 10_000)):
        header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
        file = tmp_path / f"{width}.png"
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
        with pytest.raises(InputError, match=r"89,?478,?485"):
            open_image(file)


def test_pages_escape_everything_but_our_own_markup() -> None:
    """`safe` marks only our own style and the card's YAML."""
    pages = [*SOURCE.rglob("*.html"), SOURCE / "report" / "card.md"]
    marked = {
        (file.name, name)
        for file in pages
        for name in re.findall(r"\{\{\s*([\w.]+)\s*\|\s*safe\s*\}\}", file.read_text("utf-8"))
    }
    assert marked == {("page.html", "style"), ("card.md", "front"), ("card.md", "recipe")}
    assert sum(file.read_text("utf-8").count("safe }}") for file in pages) == 3
    assert not [file for file in pages if "autoescape false" in file.read_text("utf-8")]


def test_tables_and_cards_escape_names(tiny: Grounder, tmp_path: Path) -> None:
    about: dict[str, Any] = dict.fromkeys(("heading", "title", "scale", "about", "note"), "x")
    assert "a\\|b" in as_markdown(about | {"columns": ["a|b"], "rows": []})

    folder = tmp_path / "run"
    save(tiny, folder)
    (folder / "config.yaml").write_text(epmvg.Recipe.load("scenes", f"data.train_split={HOSTILE}").dump())
    evaluation: dict[str, Any] = {"data": "a|b", "split": HOSTILE, "protocol": HOSTILE, "n": 3}
    evaluation |= {"acc50": 0.5, "miou": 0.5, "intervals": None}
    evaluation |= {"weights": weights_digest(folder / WEIGHTS), "confidence": {"mapping": [1, 0, 0]}}
    (folder / "evaluation-x.json").write_text(json.dumps(evaluation))
    text = model_card(folder)
    outside = re.sub(r"```yaml.*?```", "", text, flags=re.DOTALL)
    assert "<script" not in outside and "<img" not in outside and "a\\|b" in outside
    (recipe,) = re.findall(r"```yaml\n(.*?)\n```", text, flags=re.DOTALL)
    assert yaml.safe_load(recipe)["data"]["train_split"] == HOSTILE


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "&a [*a, *a]", "{a: &x !!binary x}"])
def test_recipes_cannot_run_code(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError):
        epmvg.Recipe.load(tmp_path / "recipe.yaml")
