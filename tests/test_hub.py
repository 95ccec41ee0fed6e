"""The bundled model `default`, and models published on the hub."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import epmvg
from epmvg.cli import main
from epmvg.cli.catalogue import catalogue
from epmvg.core.calibration import Calibration
from epmvg.core.locate import DEFAULT, FILES, fetch, locate, read_front_matter
from epmvg.core.types import InputError
from epmvg.data.registry import open_samples
from epmvg.evaluation.evaluate import ious
from epmvg.hub import model_card
from epmvg.inference.runtimes.exported import ExportedRuntime
from epmvg.inference.runtimes.torch_runtime import TorchRuntime
from epmvg.models.factory import create_model, load, save

# The bundled model


def test_listed_pretrained_models_exist() -> None:
    names = [row["name"] for row in catalogue()["pretrained"]]
    assert DEFAULT in names
    for name in names:
        assert (fetch(name) / "model.safetensors").is_file()


PHOTOS = Path(epmvg.__file__).parent / "serve" / "static" / "samples"
SEEN = {
    "camera.jpg": ("the camera", (236, 142, 330, 222)),
    "astronaut.jpg": ("the woman", (10, 20, 400, 512)),
    "chelsea.jpg": ("the cat", (0, 0, 451, 300)),
}
"""Photo -> phrase and box in pixels."""


def test_default_predicts_objects_in_photos_without_torch() -> None:
    """In a new process; predictions equal those of this process."""
    code = "import sys; sys.modules['torch'] = None; from epmvg.cli import main; main(sys.argv[1:])"
    predictor = epmvg.Predictor("default")
    for name, (phrase, box) in SEEN.items():
        command = [sys.executable, "-c", code, "predict", "default", str(PHOTOS / name), phrase, "--json"]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        (result,) = json.loads(process.stdout)["results"]
        (prediction,) = predictor(PHOTOS / name, phrase)
        assert result["box"] == pytest.approx(prediction.box, abs=0.02)
        assert ious([prediction.box], [box])[0] >= 0.5


def test_default_runs_in_torch_where_its_graphs_do_not_suffice() -> None:
    graphs, torch_ = epmvg.Predictor("default"), epmvg.Predictor("default", precision="bf16")
    assert (type(graphs.runtime), type(torch_.runtime)) == (ExportedRuntime, TorchRuntime)
    with pytest.raises(InputError, match=r"Use the run.*epmvg\.load\('default'\)"):
        graphs.maps("attention", PHOTOS / next(iter(SEEN)), "it")
    assert epmvg.Predictor(epmvg.load("default")).maps("attention", PHOTOS / next(iter(SEEN)), "it")[0].max() > 0


def test_default_finds_what_people_describe_in_photos(shared: Path) -> None:
    samples = open_samples("flickr-mini", split="val", root=str(shared / "real_grounding"))[:120]
    predictor = epmvg.Predictor("default")
    boxes = [predictor(sample.image, sample.phrase)[0].box for sample in samples]
    assert np.mean(np.array(ious(boxes, [sample.box for sample in samples])) >= 0.5) > 0.55


def test_the_run_and_the_graphs_of_default_agree() -> None:
    """The same int8 weights; activations are int8 in the graphs alone."""
    graphs, run = epmvg.Predictor("default"), epmvg.Predictor(epmvg.load("default"))
    assert (graphs.domain, graphs.image_size) == (run.domain, run.image_size)
    for name, (phrase, _) in SEEN.items():
        (ours,), (theirs,) = graphs(PHOTOS / name, phrase), run(PHOTOS / name, phrase)
        assert ious([ours.box], [theirs.box])[0] > 0.8 and ours.score == pytest.approx(theirs.score, abs=0.15)


def test_results_of_default_are_in_runs_and_a_folder_default_has_priority(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="run `epmvg evaluate default` first"):
        epmvg.write_report(["default"], tmp_path / "report.html")
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "default", "--data", str(squares), "--split", "val", "--json"])
    result = json.loads(capsys.readouterr().out)
    predictions = (tmp_path / "runs" / "default" / result["predictions"]).read_text().splitlines()
    assert result["n"] == len(predictions) == 24
    pages = [epmvg.write_report([name], tmp_path / "report.html").read_bytes() for name in ("default", "runs/default")]
    assert pages[0] == pages[1]
    with pytest.raises(InputError, match="cannot be changed"):
        epmvg.calibrate("default", data=str(squares), split="val")
    save(create_model("tiny-resnet"), tmp_path / "runs" / "default")
    with pytest.raises(InputError, match="holds another model"):
        epmvg.evaluate("default", data=str(squares), split="val")
    (tmp_path / "runs" / "default").rename(tmp_path / "default")
    assert epmvg.load("default").settings["visual_encoder"]["backbone"] == "resnet10t"


# Publishing


@pytest.fixture
def run(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibrated run in runs/mine, and street.jpg, in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine"
    model = create_model("tiny-resnet", dense_head=True, similarity=True, iou_head=True)
    model.calibration = Calibration("beta", 1.5, 1.5, -0.5, 0.25, 0.1, {"data": "annotations", "split": "val"})
    model.calibration.fitted.update(coverage=0.5)  # type: ignore[union-attr]
    save(model, folder)
    recipe = epmvg.Recipe.load("scenes", f"data.name={squares}", f"data.root={squares.parent}", "model=tiny-resnet")
    (folder / "config.yaml").write_text(recipe.dump())
    (squares.parent / "0.png").rename(squares.parent / "street.jpg")
    squares.write_text(squares.read_text().replace('"0.png"', '"street.jpg"'))
    return folder


def test_a_published_folder_predicts_the_same_and_contains_no_paths(run: Path, tmp_path: Path) -> None:
    epmvg.evaluate(run)
    folder = epmvg.save_pretrained(run, tmp_path / "hub" / "mine")
    own, published = (epmvg.Predictor(each)("street.jpg", "the red square", min_score="auto") for each in (run, folder))
    assert own == published
    card = (folder / "README.md").read_text()
    metrics = json.loads((run / "evaluation-annotations-val.json").read_text())
    low, high = metrics["intervals"]["acc50"]
    assert f"| {100 * metrics['acc50']:.1f} % ({100 * low:.1f} % to {100 * high:.1f} %) |" in card
    assert "0 of the 6 images of annotations val are among the 6 training images" in card
    assert "Teacher: none" in card and "No license was stated" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"
    for file in folder.rglob("*"):
        assert file.suffix not in (".bin", ".pt", ".pkl")
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
    with pytest.raises(InputError, match="not empty"):
        epmvg.save_pretrained(run, folder)


def test_the_license_of_a_model_is_published_with_it(run: Path, tmp_path: Path) -> None:
    """Also from the folder that was published first, and of a run that started from it; a given one replaces it."""
    first = epmvg.save_pretrained("default", tmp_path / "hub" / "first")
    second = epmvg.save_pretrained(first, tmp_path / "hub" / "second")
    tuned = shutil.copytree(run, tmp_path / "tuned")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["model"]["init_from"] = "default"
    (tuned / "config.yaml").write_text(yaml.safe_dump(settings))
    third = epmvg.save_pretrained(tuned, tmp_path / "hub" / "third")
    own, keys = read_front_matter(locate("default")), ("license", "license_name", "license_link")
    for folder in (first, second, third):
        assert (folder / "LICENSE").read_bytes() == (locate("default") / "LICENSE").read_bytes()
        card = read_front_matter(folder)
        assert [card[key] for key in keys] == [own[key] for key in keys]
        assert "The terms of the weights are in the file LICENSE" in (folder / "README.md").read_text()
    given = epmvg.save_pretrained(first, tmp_path / "hub" / "given", license="mit")
    assert read_front_matter(given)["license"] == "mit" and not (given / "LICENSE").exists()
    unknown = epmvg.save_pretrained(epmvg.save_pretrained(run, tmp_path / "hub" / "a"), tmp_path / "hub" / "b")
    assert "No license was stated" in (unknown / "README.md").read_text()


def test_a_model_is_published_in_the_current_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert epmvg.save_pretrained(run, ".") == Path()
    assert Path.cwd() == tmp_path / "mine" and "# mine" in Path("README.md").read_text()
    assert load(tmp_path / "mine").settings == load(run).settings
    assert {file.name for file in Path().iterdir()} <= {Path(name).parts[0] for name in FILES}


def test_a_folder_that_cannot_be_written_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="could not be written"):
        epmvg.save_pretrained(run, tmp_path / "file" / "mine")


def test_a_card_has_no_metrics_of_other_weights(run: Path, tmp_path: Path) -> None:
    epmvg.evaluate(run)
    model = load(run)
    torch.nn.init.normal_(model.reg_token.weight)
    save(model, run)  # trained further, and not evaluated again
    assert "Not measured: `epmvg evaluate` was not run on these weights" in model_card(run)
    epmvg.evaluate(run)
    ece = json.loads((run / "evaluation-annotations-val.json").read_text())["confidence"]["ece"]
    assert f"| {ece:.3f} |" in model_card(run)
    model.calibration = Calibration("beta", 3.0, 3.0, 0.0)
    save(model, run)  # calibrated again: the accuracy is still valid, the calibration error is not
    card = model_card(run)
    assert "Acc@0.5" in card and f"| {ece:.3f} |" not in card
    model.calibration = Calibration("none", 1.0, 1.0, 0.0, 0.5, 0.1)
    save(model, run)
    assert "Scores are not calibrated" in model_card(run)


def test_leakage_is_counted_by_content(run: Path, squares: Path) -> None:
    epmvg.evaluate(run)
    samples = [json.loads(line) for line in squares.read_text().splitlines()]
    train, val = (next(each["image"] for each in samples if each["split"] == split) for split in ("train", "val"))
    shutil.copy(squares.parent / train, squares.parent / val)
    assert "1 of the 6 images of annotations val are among the 6 training images" in model_card(run)


def test_publishing_deletes_files_of_an_earlier_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration on the hub that the new folder does not have is deleted in the same commit."""
    import huggingface_hub

    upload: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **arguments: upload.update(arguments))
    epmvg.push_to_hub(run, "somebody/mini")
    assert {"confidence.json", "model.safetensors", "config.yaml"} <= set(upload["delete_patterns"])


def test_other_models_on_the_hub_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))
    with pytest.raises(InputError, match=r"somebody/detector on the Hugging Face hub has no model\.yaml"):
        epmvg.load("somebody/detector")

    def unknown(name: str, **_: Any) -> str:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    with pytest.raises(InputError, match=r"cannot be downloaded from the Hugging Face hub \(Repository"):
        epmvg.load("somebody/nothing")


def test_the_domain_is_published(run: Path, tmp_path: Path) -> None:
    """The domain is in the bundled model's card, follows from a recipe of drawn scenes, and is otherwise None."""
    bundled = epmvg.Predictor("default")
    assert bundled.domain is not None and "photographs" in bundled.domain and bundled.domain in repr(bundled)
    assert epmvg.Predictor(run).domain is None
    recipe = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(?m)^  name: .*jsonl$", "  name: scenes", recipe))
    published = epmvg.save_pretrained(run, tmp_path / "hub" / "scenes")
    assert epmvg.Predictor(run).domain == epmvg.Predictor(published).domain == "drawn scenes, not photographs"


def test_a_card_states_what_is_unknown(tmp_path: Path) -> None:
    """A model saved by hand: no recipe, evaluation or calibration."""
    save(create_model("tiny-resnet"), tmp_path / "run")
    card = (epmvg.save_pretrained(tmp_path / "run", tmp_path / "hub", license="mit") / "README.md").read_text()
    for text in ("how this model was trained is not known", "`epmvg evaluate` was not run", "Not checked", "under mit"):
        assert text in card
    assert "Scores are not calibrated" in card
    assert load(tmp_path / "hub").calibration is None


def test_an_unreachable_hub_is_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are offline; a mistyped local path is never looked up on the hub."""
    import huggingface_hub

    with pytest.raises(InputError, match=r"^somebody/mini is no folder here and cannot be downloaded") as error:
        epmvg.load("somebody/mini")
    for name in (run, "default"):
        with pytest.raises(InputError, match=r"has no revision v1\. Leave"):
            epmvg.from_pretrained(name, revision="v1")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(InputError, match=r"There is no run runs/nine"):
        epmvg.load("runs/nine")
    with pytest.raises(InputError, match="could not be published"):
        epmvg.push_to_hub(run, "somebody/mini")
