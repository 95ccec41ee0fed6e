"""Tests of recipes and `key=value` overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epmvg.config.published import missing_start, published_start
from epmvg.config.settings import Recipe, list_recipes
from epmvg.core.types import InputError
from epmvg.models.presets import preset


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_load_and_dump(name: str, tmp_path: Path) -> None:
    own = {"few-photos": ["data.name=my.jsonl"], "photos": ["data.name=my.jsonl"], "improved": ["distill=folder"]}
    recipe = Recipe.load(name, *own.get(name, []))
    assert recipe.about
    preset(recipe.model.name, **recipe.model.overrides)
    (tmp_path / "copy.yaml").write_text(recipe.dump())
    assert Recipe.load(tmp_path / "copy.yaml") == recipe


def test_a_recipe_without_data_requires_it() -> None:
    for more in ([], ["data.batch_size=4"]):
        with pytest.raises(InputError, match=r"few-photos states no data\. Give data\.name=FILE"):
            Recipe.load("few-photos", *more)
    assert Recipe.load("few-photos", "data=my.jsonl").data.name == "my.jsonl"


def test_overrides_set_their_keys() -> None:
    recipe = Recipe.load(
        "scenes",
        "model=transvg-r50",
        "model.image_size=320",
        "train.epochs=3",
        "train.lr=2e-4",
        "distill=folder",
        "data.root=/x",
    )
    assert (recipe.model.name, recipe.model.overrides) == ("transvg-r50", {"image_size": 320})
    assert (recipe.train.epochs, recipe.train.lr) == (3, 2e-4)
    assert recipe.distill is not None and recipe.distill.teacher == "folder" and recipe.distill.image_weight == 1.5
    assert recipe.data.root == "/x" and recipe.data.name == "scenes"
    assert Recipe.load("scenes", "distill=folder", "distill=null").distill is None


@pytest.mark.parametrize("text", ["no", "2017", "1_0", "1e3", "0755", "/my #1 set", "/a: b", "[x]/a", "~", "a=b", "on"])
def test_text_is_not_parsed(text: str) -> None:
    recipe = Recipe.load(
        "scenes", f"data.root={text}", f"data.val_split={text}", f"distill={text}", f"data.train_split={text}"
    )
    assert recipe.distill is not None
    assert (recipe.data.root, recipe.data.val_split, recipe.data.train_split, recipe.distill.teacher) == (text,) * 4
    assert Recipe.load("scenes", "data.root=null").data.root is None
    assert Recipe.load("scenes", "data.augment=null", "data.augment.horizontal_flip=0").data.augment is not None


def test_a_recipe_on_top_replaces_what_it_states(tmp_path: Path) -> None:
    base, improved = Recipe.load("refcoco"), Recipe.load("refcoco", "train.lr=3e-4", "improved", "model.vls=first")
    assert improved.name == "refcoco improved" and improved.about == base.about
    assert (improved.model.name, improved.data.name, improved.train.epochs) == ("transvg-r50", "refcoco", 90)
    assert improved.distill is not None and base.distill is not None
    assert (improved.distill.teacher, improved.distill.dense_weight) == (base.distill.teacher, 1.0)
    assert improved.model.overrides["vls"] == "first" and improved.model.overrides["dense_head"] is True
    assert improved.train.lr == 3e-4 and base.model.init_from and improved.model.init_from == base.model.init_from
    assert Recipe.load("refcoco", "distill=null", "improved").distill is None
    (tmp_path / "mine.yaml").write_text("model: transvg-r101\ndata: {augment: null}")
    mine = Recipe.load("refcoco", str(tmp_path / "mine.yaml"))
    assert (mine.model.name, mine.data.name, mine.data.augment) == ("transvg-r101", "refcoco", None)
    preset(improved.model.name, **improved.model.overrides)


def test_the_published_start_belongs_to_student_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = {
        ("refcoco", "transvg-r50"): "transvg-r50-detr-r50-unc",
        ("refcoco+", "transvg-r101"): "transvg-r101-detr-r101-unc",
        ("refcocog-umd", "transvg-r50"): "transvg-r50-detr-r50-gref",
        ("flickr30k", "transvg-r50"): "transvg-r50-detr-r50-referit",
        ("referit", "qrnet-swin-s"): "qrnet-swin-s-mask_rcnn_swin_small_patch4_window7",
    }
    for (data, model), folder in starts.items():
        assert Recipe.load(data, f"model.name={model}").model.init_from == f"weights/{folder}"
    assert Recipe.load("refcoco", "model=mini").model.init_from is None
    assert Recipe.load("refcoco", "model.init_from=null").model.init_from is None
    monkeypatch.chdir(tmp_path)
    start = ("weights/transvg-r50-detr-r50-unc", "transvg-r50", "refcoco")
    command = "epmvg convert detr-r50-unc.pth --as detr --model transvg-r50 --bert bert-base-uncased --out " + start[0]
    assert f"`{command}`, or set model.init_from=null" in missing_start(*start)
    unnamed = published_start("qrnet-swin-s", "refcocog-umd")
    assert unnamed and "name varies)" in missing_start(unnamed.folder, "qrnet-swin-s", "refcocog-umd")
    Path(start[0]).mkdir(parents=True)
    assert not missing_start(*start) and not missing_start("elsewhere", *start[1:])


def test_a_recipe_may_leave_the_teacher_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("distill: {teacher: null, dense_weight: 0.7}")
    source = tmp_path / "mine.yaml"
    assert Recipe.load(source).distill is None
    for named in (["distill=folder"], ["distill.teacher=folder"], ["distill.text_weight=2", "distill=folder"]):
        distill = Recipe.load(source, *named).distill
        assert distill is not None and (distill.teacher, distill.dense_weight, distill.text_weight) == (
            "folder",
            0.7,
            2.0,
        )
    another = Recipe.load("refcoco", "distill=folder").distill  # `pretrained` belongs to the recipe's teacher
    assert another is not None and another.pretrained is None
    with pytest.raises(InputError, match=r"distill\.text_weight=2 needs a teacher"):
        Recipe.load(source, "distill.text_weight=2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scnes"], "Did you mean 'scenes'"),
        (["nowhere.yaml"], "nowhere.yaml does not exist"),
        (["scenes", "train.epoch=3"], "'train.epoch'. Did you mean 'train.epochs'"),
        (["scenes", "trian.epochs=3"], "'trian'. Did you mean 'train'"),
        (["scenes", "train.epochs=-1"], r"train.epochs='-1' does not fit"),
        (["scenes", "train.epochs=many"], "train.epochs='many' does not fit"),
        (["scenes", "train.epochs=inf"], "train.epochs='inf' does not fit"),
        (["scenes", "train.epochs=true"], "train.epochs='true' does not fit"),
        (["scenes", "train=3", "train.lr=1"], "train.lr cannot be set beside train=3"),
        (["scenes", "model.set=null", "model.image_size=["], "The value of 'model.image_size' is not valid YAML"),
        (["scenes", "train.seed=-1"], r"train.seed='-1' does not fit: input should be greater"),
        (["scenes", "train.seed=4294967296"], r"train.seed='4294967296' does not fit: input should be less"),
        (["scenes", "model.overrides={a: 1}"], "Write model.KEY=value"),
        (["scenes", "model.x=2024-13-45"], "The value of 'model.x' is not valid YAML"),
        (["scenes", "epochs"], "'epochs' is not a setting"),
        (["scenes", "data.augment.horizontal_flip=2"], r"data.augment.horizontal_flip='2'"),
    ],
)
def test_wrong_settings_are_rejected_by_name(arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recipe.load(*arguments)


@pytest.mark.parametrize(
    "content",
    [
        *("data: {name: é}".encode("latin-1"), b"data: {name: x", b"- a", b"model: {overrides: 3}"),
        *(b"about: 2024-13-45", b"about: !!timestamp 2", b"about: !!int x", b"data: " + b"[" * 5000, b"\0"),
        *(b"train: {seed: " + b"9" * digits + b"}" for digits in (400, 5000)),
    ],
    ids=lambda content: content[:24].decode("latin-1"),
)
def test_an_unusable_recipe_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.yaml") as error:
        Recipe.load(tmp_path / "mine.yaml")
    assert len(str(error.value).replace(str(tmp_path), "")) < 250 and "\n" not in str(error.value)


@given(st.permutations(["data=few.jsonl", "data.batch_size=4", "model=transvg-r50", "model.image_size=320"]))
def test_groups_are_set_before_their_keys(overrides: list[str]) -> None:
    recipe = Recipe.load("scenes", *overrides)
    assert (recipe.data.name, recipe.data.batch_size) == ("few.jsonl", 4)
    assert (recipe.model.name, recipe.model.overrides) == ("transvg-r50", {"image_size": 320})


def test_model_overrides_are_settings_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {vls: mean}", encoding="utf-16")
    (tmp_path / "dumped.yaml").write_text("model: {overrides: {vls: first}}")
    base, dumped = str(tmp_path / "base.yaml"), str(tmp_path / "dumped.yaml")
    for overrides, vls in (([], "mean"), (["model.overrides.vls=first"], "first"), ([dumped], "first")):
        assert Recipe.load(base, *overrides).model.overrides == {"vls": vls}
    assert Recipe.load(dumped, "model.vls=mean").model.overrides == {"vls": "mean"}
