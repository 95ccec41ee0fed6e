"""Tests of the web page's files without a browser."""

from __future__ import annotations

import json
import re

import pytest
from fastapi.testclient import TestClient

from epmvg.serve.app import STATIC


@pytest.mark.parametrize("file", [file for file in STATIC.iterdir() if file.is_file()], ids=lambda file: file.name)
def test_files_load_nothing_from_elsewhere_and_contain_no_inline_code(file: object) -> None:
    text = (STATIC / str(file)).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    code = re.sub(r"^\s*//.*|\s// .*", "", text, flags=re.MULTILINE)
    assert not re.search(r"(https?:)?//[a-z]|@import|\burl\(", code)
    assert not re.search(r"<script(?![^>]* src)|<style|\son[a-z]+=|innerHTML|eval\(", text)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_have_a_strict_policy_and_their_files(client: TestClient, path: str) -> None:
    page = client.get(path)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for address in re.findall(r'(?:href|src)="([^"]+)"', page.text):
        assert client.get(f"/{address.lstrip('./')}").status_code == 200, address


def test_samples_are_images_with_phrases(client: TestClient) -> None:
    samples = json.loads(client.get("/static/samples/samples.json").text)
    for sample in samples:
        assert client.get(f"/static/samples/{sample['file']}").headers["content-type"] == "image/jpeg"
        assert sample["title"] and len(sample["phrases"]) > 4
    files = {file.name for file in (STATIC / "samples").glob("*.jpg")}
    assert files == {sample["file"] for sample in samples}
    sources = (STATIC / "samples" / "SOURCES.md").read_text(encoding="utf-8")
    assert files == set(re.findall(r"^\| (\S+\.jpg) \|", sources, re.MULTILINE)), "each file needs author and license"
