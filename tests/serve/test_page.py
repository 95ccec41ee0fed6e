"""Tests of the web page in a browser; skipped where there is none."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, sync_playwright
from serving import FakePredictor, as_json, serving

from epmvg.core.types import Prediction
from epmvg.inference.predictor import Predictor
from epmvg.models.grounder import Grounder
from epmvg.serve.app import STATIC

CHROMIUM = shutil.which("chromium")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
SHOTS = os.environ.get("EPMVG_SHOTS")  # a folder to leave screenshots in

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


@pytest.fixture
def address(tiny: Grounder) -> Iterator[str]:
    with serving(Predictor(tiny)) as started:
        yield started


Visit = Callable[..., Page]


@pytest.fixture
def visit() -> Iterator[Visit]:
    """Open a page; requests to other hosts and console errors fail the test."""
    problems: list[str] = []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())

        def open_page(address: str, path: str = "/", **context: Any) -> Page:
            def on_console(message: ConsoleMessage) -> None:
                if message.type == "error" and "401" not in message.text:
                    problems.append(message.text)

            def on_request(request: Request) -> None:
                if not request.url.startswith((address, f"blob:{address}")):
                    problems.append(request.url)

            page = browser.new_context(**context).new_page()
            page.on("console", on_console)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("request", on_request)
            page.goto(address + path)
            return page

        yield open_page
        browser.close()
    assert problems == []


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(300)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def pasted(page: Page) -> str:
    """Return the text of the clipboard, pasted into a text area."""
    page.evaluate("document.body.append(Object.assign(document.createElement('textarea'), { id: 'pasted' }))")
    page.locator("#pasted").press("Control+v")
    text = page.locator("#pasted").input_value()
    page.evaluate("document.getElementById('pasted').remove()")
    return text


BOX = ".box:not(.candidate)"

TRANSFER = """async ([kind, field, address]) => {
  const data = new DataTransfer();
  data.items.add(new File([await (await fetch(address)).blob()], "photo.jpg", { type: "image/jpeg" }));
  const event = new Event(kind, { bubbles: true, cancelable: true });
  Object.defineProperty(event, field, { value: data });
  document.getElementById("stage").dispatchEvent(event);
}"""


IS_VISIBLE = """field => {
  const { left, top, width, height } = field.getBoundingClientRect();
  return document.elementFromPoint(left + width / 2, top + height / 2) === field;
}"""


def first_phrase(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Phrase 1")


def type_phrases(page: Page, *phrases: str) -> None:
    """Type phrases into the last rows and wait for their predictions; the last row stays empty if there is room."""
    for phrase in phrases:
        page.get_by_role("textbox").last.fill(phrase)
        page.wait_for_function("() => document.querySelector('#rows li:last-child output').textContent")
        page.keyboard.press("Enter")


def predict_sample(page: Page) -> None:
    page.locator("#samples button").first.click()
    page.locator("#suggestions button").nth(0).click()
    page.locator("#suggestions button").nth(4).click()
    page.wait_for_selector(".box.c1")


def test_the_page_works_by_keyboard_alone(visit: Visit, address: str) -> None:
    page = visit(address)
    page.locator("#samples button").first.press("Enter")
    page.wait_for_selector("#suggestions button")
    first_phrase(page).press_sequentially("the rooster")
    page.wait_for_selector(".box.c0")
    label = page.locator(f"{BOX}.c0 span").inner_text()
    assert re.fullmatch(r"the rooster 0\.\d\d", label)
    first_phrase(page).press("Enter")
    page.keyboard.type("<img src=x onerror=alert(1)>")
    page.wait_for_selector(".box.c1")
    assert page.locator(f"{BOX}.c1 span").inner_text().startswith("<img src=x onerror=alert(1)> 0.")
    assert page.locator(BOX).count() == 2 and page.locator("#boxes img").count() == 0
    page.keyboard.press("Escape")
    assert page.locator(BOX).count() == 1 and first_phrase(page).evaluate("e => e === document.activeElement")


def test_large_images_are_scaled_down_and_boxes_are_in_their_own_pixels(
    visit: Visit, address: str, tmp_path: Path, tiny: Grounder
) -> None:
    photo = Image.new("RGB", (2400, 1200), "teal")
    photo.paste((200, 30, 30), (0, 0, 700, 700))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right: it is displayed 1200 x 2400
    photo.save(tmp_path / "a.jpg", exif=exif)
    page = visit(address)
    first_phrase(page).fill("the red square")
    with page.expect_response("**/v1/ground") as response:
        page.set_input_files("#file", tmp_path / "a.jpg")
    body = response.value.json()
    assert (body["width"], body["height"]) == (800, 1600)
    page.wait_for_selector(".box.c0")
    shown = re.findall(r"\d+", (first_phrase(page).get_attribute("title") or "").partition(":")[2])
    found = Predictor(tiny)(tmp_path / "a.jpg", "the red square")[0]
    assert [int(value) for value in shown] == pytest.approx(found.box, abs=30)
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    page.set_input_files("#file", tmp_path / "b.jpg")
    page.get_by_text("cannot decode this file").wait_for()


def test_images_are_dropped_and_pasted(visit: Visit, address: str) -> None:
    page = visit(address)
    first_phrase(page).fill("the red square")
    for kind, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        with page.expect_response("**/v1/ground") as response:
            page.evaluate(TRANSFER, [kind, field, f"static/samples/{'camera' if kind == 'paste' else 'rocket'}.jpg"])
        assert response.value.status == 200
        page.wait_for_selector(".box.c0")
        page.get_by_text("Predicted in").wait_for()


def test_known_phrases_need_no_request(visit: Visit, address: str) -> None:
    page = visit(address)
    predict_sample(page)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    phrase = first_phrase(page)
    before = phrase.input_value()
    phrase.fill("")
    assert page.locator(BOX).count() == 1
    phrase.fill(before)
    assert page.locator(BOX).count() == 2
    page.wait_for_timeout(500)
    assert requests == []


def test_a_suggestion_is_added_and_removed(visit: Visit, address: str) -> None:
    page = visit(address)
    predict_sample(page)
    second = page.locator("#suggestions button").nth(4)
    assert second.get_attribute("aria-pressed") == "true"
    second.click()
    assert page.locator(".box").count() == 1 and second.get_attribute("aria-pressed") == "false"


def test_layout_in_light_dark_and_on_a_phone(visit: Visit, address: str) -> None:
    looks: dict[str, dict[str, Any]] = {
        "light": {"viewport": {"width": 1280, "height": 800}},
        "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
        "phone": {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True},
    }
    brightness = {}
    for name, look in looks.items():
        page = visit(address, **look)
        page.wait_for_selector("#samples img")
        shoot(page, f"{name}-empty")
        predict_sample(page)
        shoot(page, name)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness[name] = sum(map(int, re.findall(r"\d+", paper)[:3]))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        small = page.evaluate("[...document.querySelectorAll('button, input')].filter(e => e.offsetHeight < 36).length")
        assert small == 1, "controls lower than 36 px are hard to touch; only the hidden file field may be"
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        first_phrase(page).focus()
        assert first_phrase(page).evaluate(IS_VISIBLE), f"{name}: the input is hidden"
    assert brightness["dark"] < 150 and brightness["light"] == brightness["phone"] > 600


def test_the_api_page_lists_every_operation(visit: Visit, address: str) -> None:
    for name, scheme in (("docs-light", "light"), ("docs-dark", "dark")):
        page = visit(address, "/docs", color_scheme=scheme)
        page.wait_for_selector("#operations article")
        operations = page.locator("article h2 code").all_inner_texts()
        assert operations == ["POST /v1/ground", "GET /healthz", "GET /metrics"]
        assert '"phrases"' in page.locator("#operations").inner_text()
        shoot(page, name)


class LengthPredictor(FakePredictor):
    """The score of a phrase is a tenth of its length."""

    def predict_batch(self, queries: Any, keys: Any, sizes: Any, top_k: int = 1) -> list[list[Prediction]]:
        box = (0.0, 0.0, 9.0, 9.0)
        return [[Prediction(phrase, box, len(phrase) / 10) for phrase in phrases] for _, phrases in queries]


def test_the_minimum_score_hides_boxes(visit: Visit) -> None:
    with serving(LengthPredictor()) as address:
        page = visit(address)
        page.get_by_text("Model: fake, trained on colored rectangles").wait_for()
        assert page.get_by_label("Minimum score").input_value() == "0.5"
        page.locator("#samples button").first.click()
        first_phrase(page).fill("four")
        page.get_by_text("Predicted in").wait_for()
        assert page.locator(".box").count() == 0 and page.locator("#rows output").inner_text() == "not found\n0.40"
        page.get_by_label("Minimum score").fill("0.4")
        assert page.locator(".box").count() == 1 and page.locator("#rows output").inner_text() == "0.40"


@pytest.mark.parametrize("touch", [False, True])
def test_a_selected_phrase_shows_its_candidates(visit: Visit, touch: bool) -> None:
    with serving(FakePredictor()) as address:
        page = visit(address, **({"viewport": {"width": 375, "height": 740}, "has_touch": True} if touch else {}))
        page.locator("#samples button").first.click()
        type_phrases(page, "it", "unlikely")
        candidates = page.locator(".box.candidate")
        assert page.locator(".box").count() == 1 and candidates.count() == 0
        if touch:
            first_phrase(page).tap()
        else:
            first_phrase(page).hover()
        assert candidates.all_inner_texts() == ["0.25", "0.17"] and page.locator(".c0.candidate").count() == 2
        page.get_by_role("textbox", name="Phrase 3").focus()  # it has no text yet
        page.mouse.move(0, 0)
        assert candidates.count() == 0
        page.get_by_role("textbox", name="Phrase 2").focus()  # not found: its best box is dashed too
        assert candidates.all_inner_texts() == ["0.40", "0.20", "0.13"]
        assert page.locator(".box.dim").all_inner_texts() == ["it 0.50"]
        shoot(page, f"candidates-{'touch' if touch else 'desktop'}")


COVERED_LABELS = """() => {
  const labels = [...document.querySelectorAll(".box span")].map((label) => label.getBoundingClientRect());
  const hides = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  return labels.flatMap((a, i) => labels.slice(i + 1).filter((b) => hides(a, b))).length;
}"""


@pytest.mark.slow
def test_labels_never_cover_each_other(visit: Visit) -> None:
    with serving(FakePredictor()) as address:  # all boxes are the whole image
        page = visit(address, viewport={"width": 375, "height": 740}, is_mobile=True, has_touch=True)
        page.locator("#samples button").last.click()
        type_phrases(page, *(f"the tower number {number} of a long list" for number in range(8)))
        assert page.locator(".box").count() == 8 + 2
        assert page.locator(".box span").count() > 6 and page.evaluate(COVERED_LABELS) == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shoot(page, "crowded")


@pytest.mark.parametrize("secure", [True, False])
def test_results_are_copied_as_the_api_returns_them(visit: Visit, secure: bool) -> None:
    with serving(FakePredictor()) as address:
        page = visit(address, permissions=["clipboard-read", "clipboard-write"])
        if not secure:  # over plain HTTP browsers have no navigator.clipboard
            page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        copy = page.get_by_role("button", name="Copy as JSON")
        assert copy.is_disabled()
        page.locator("#samples button").first.click()
        type_phrases(page, "it", "unlikely")
        for min_score in (0.5, 0.4):
            page.get_by_label("Minimum score").fill(str(min_score))
            copy.click()
            page.get_by_text("Copied 2 results as JSON.").wait_for()
            copied = page.evaluate("navigator.clipboard?.readText()") if secure else pasted(page)
            query = as_json((STATIC / "samples" / "astronaut.jpg").read_bytes(), ["it", "unlikely"], top_k=3)
            response = page.request.post(f"{address}/v1/ground", data=query | {"min_score": min_score})
            assert json.loads(copied) == response.json()


def test_a_response_of_a_proxy_is_reported(visit: Visit, address: str) -> None:
    page = visit(address)
    page.route("**/v1/ground", lambda route: route.fulfill(status=200, body="<html>Sign in</html>"))
    page.locator("#samples button").first.click()
    first_phrase(page).fill("it")
    page.get_by_text("The response is not from this server (status 200").wait_for()


def test_a_server_with_a_token_prompts_for_it(visit: Visit, tiny: Grounder) -> None:
    with serving(Predictor(tiny), token="s3cret") as address:
        page = visit(address)
        page.locator("#samples button").first.click()
        page.locator("#suggestions button").first.click()
        page.get_by_label("Token of this server").fill("s3cret")
        page.keyboard.press("Tab")
        page.wait_for_selector(".box.c0")
