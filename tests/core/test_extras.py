"""Missing optional dependencies are one sentence that names the extra, and what is light imports none of them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from epmvg.core.extras import EXTRAS, MissingExtraError, optional_imports
from epmvg.core.types import InputError

BLOCK = f"""
import sys
for module in {EXTRAS["train"].split()!r}:
    sys.modules[module] = None
"""
"""Code after which the packages of the extra `train` count as not installed."""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK + code], check=False, capture_output=True, text=True)


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extra_of_a_missing_module_is_named(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in EXTRAS[extra].split():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError) as error, optional_imports("Reading", extra):
            __import__(module)
        assert str(error.value) == f"Reading needs {module}. Run pip install 'epmvg[{extra}]'."
        assert isinstance(error.value, InputError | ImportError)


def test_other_missing_modules_are_raised_as_they_are() -> None:
    with pytest.raises(ModuleNotFoundError) as error, optional_imports():
        __import__("no_such_module")
    assert not isinstance(error.value, MissingExtraError)


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_install_the_modules_named_for_them(extra: str) -> None:
    file = Path(__file__).parents[2] / "pyproject.toml"
    lines = tomllib.loads(file.read_text("utf-8"))["project"]["optional-dependencies"][extra]
    installed = {canonicalize_name(Requirement(line).name) for line in lines}
    distributions = packages_distributions()
    for module in EXTRAS[extra].split():
        names = {canonicalize_name(name) for name in distributions.get(module, [module])}
        assert names & installed, f"{extra} does not install {module}"


def test_what_predicts_and_serves_runs_without_the_extra_for_training() -> None:
    code = "import epmvg, epmvg.cli, epmvg.inference.batch, epmvg.serve.server\nepmvg.Predictor, epmvg.Predictions"
    done = run(f"{code}\nepmvg.cli.main(['list', '--json'])")
    assert done.returncode == 0, done.stderr


def test_what_trains_says_what_to_install() -> None:
    for command in (["train", "few-photos"], ["demo"], ["evaluate", "default"], ["calibrate", "default"]):
        done = run(f"import epmvg.cli\nepmvg.cli.main({command!r})")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "pip install 'epmvg[train]'" in done.stderr
    done = run("from epmvg import train")
    assert "MissingExtraError: epmvg.train needs" in done.stderr
