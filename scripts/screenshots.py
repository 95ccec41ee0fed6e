"""Take screenshots of the server's page and of a report: wide and narrow, light and dark.

Serves a run or an exported folder, predicts phrases in a sample photograph with Debian's Chromium and writes PNG files
named by what they show: the empty page, the predictions, the candidates of the last phrase, and the API. `--width`
resizes them to this width and 256 colors, as in docs/images:

    python scripts/screenshots.py default --out shots
    python scripts/screenshots.py exported --sample 1 --phrases 0 1 3 --min-score 0.3 --width 860 --out shots
    python scripts/screenshots.py runs/demo/distilled --reports runs/demo/plain runs/demo/distilled --out shots
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

VIEWPORTS = {"desktop": (1280, 800), "phone": (390, 844)}
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
TIMEOUT = 120_000  # ms


@contextmanager
def served(run: str) -> Iterator[str]:
    """Run `epmvg serve` on a free port and yield its address."""
    command = [sys.executable, "-m", "epmvg", "serve", run, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            output = ""
            while (found := re.search(r"at (http://\S+)", output)) is None:
                line = server.stderr.readline()  # "" once the server has ended
                output += line
                if not line:
                    sys.exit(output)
            yield found.group(1)
        finally:
            server.terminate()


def views(browser: Browser, address: str) -> Iterator[tuple[str, Page]]:
    """Open an address in every viewport and color scheme; yield a name and the page."""
    for viewport, (width, height) in VIEWPORTS.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="light" if scheme == "light" else "dark",
                device_scale_factor=1 if viewport == "desktop" else 2,
                is_mobile=viewport == "phone",
                has_touch=viewport == "phone",
            )
            context.set_default_timeout(TIMEOUT)
            page = context.new_page()
            page.goto(address)
            yield f"{viewport}-{scheme}", page
            context.close()


def predict(page: Page, sample: int, phrases: list[int], min_score: float | None) -> None:
    """Choose a sample image and predict some of its suggested phrases."""
    page.locator("#samples button").nth(sample).click()
    page.wait_for_selector("#suggestions button")
    for phrase in phrases:
        page.locator("#suggestions button").nth(phrase).click()
    has_scores = "count => [...document.querySelectorAll('#rows output')].filter(x => x.textContent).length === count"
    page.wait_for_function(has_scores, arg=len(phrases))  # a phrase that is not found has a score too
    page.get_by_text("Predicted in").wait_for()
    if min_score is not None:
        page.get_by_label("Minimum score").fill(str(min_score))


def shrink(file: Path, width: int) -> None:
    """Resize a PNG to a width, with 256 colors."""
    with Image.open(file) as opened:
        image = opened.convert("RGB").resize(
            (width, round(opened.height * width / opened.width)), Image.Resampling.LANCZOS
        )
    image.quantize(256, kmeans=4, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run or an exported folder")
    parser.add_argument("--reports", type=Path, nargs="*", default=[], help="runs to report on, side by side")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=0, help="which sample image, from 0")
    parser.add_argument("--phrases", type=int, nargs="*", default=[0, 2, 4], help="its suggestions, from 0")
    parser.add_argument("--min-score", type=float, help="position of the slider; by default the stored threshold")
    parser.add_argument("--width", type=int)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("There is no Chromium: apt-get install chromium.")

    def shoot(page: Page, name: str) -> None:
        file = arguments.out / f"{name}.png"
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=str(file), full_page=True, timeout=TIMEOUT)
        if arguments.width:
            shrink(file, arguments.width)
        print(file)

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=QUIET)
        with served(arguments.run) as address:
            for name, page in views(browser, address):
                page.wait_for_selector("#samples img")
                page.wait_for_load_state("networkidle")
                shoot(page, f"empty-{name}")
                predict(page, arguments.sample, arguments.phrases, arguments.min_score)
                shoot(page, f"page-{name}")
                page.get_by_role("textbox").last.focus()
                shoot(page, f"candidates-{name}")
            for name, page in views(browser, f"{address}/docs"):
                page.wait_for_selector("#operations article")
                shoot(page, f"api-{name}")
        if arguments.reports:
            from epmvg.report import write_report  # needs the extra `train`

            written = write_report(arguments.reports, arguments.out / "report.html")
            for name, page in views(browser, written.resolve().as_uri()):
                shoot(page, f"report-{name}")
        browser.close()


if __name__ == "__main__":
    main()
