"""Make pictures of the server's page and of a report, in light and dark, on a desk and on a phone.

    python scripts/screenshots.py RUN [RUN ...] --out FOLDER [--small]

The last run is asked about a drawn scene; the report compares all of them. Needs Debian's Chromium and Playwright.
`--small` stores 192 colours, at most 880 px wide, for documents.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import epmvg
from epmvg.predict import Predictor
from epmvg.serve.app import create_app
from epmvg.serve.limits import Limits
from epmvg.serve.server import listen, server_of

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
PLACES: dict[str, dict[str, Any]] = {
    "desk": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
LOOKS = {
    f"{place}-{scheme}": {**where, "color_scheme": scheme}
    for place, where in PLACES.items()
    for scheme in ("light", "dark")
}


def ask(page: Page) -> None:
    """Take the first sample scene and three phrases that are true of it."""
    page.locator("#samples button").first.click()
    for number in (0, 2, 4):
        page.locator("#suggestions button").nth(number).click()
        page.wait_for_selector(f".box.c{number // 2}")


def shoot(page: Page, file: Path, *, whole: bool, small: bool) -> None:
    """Leave a picture of the window, or of the whole page."""
    page.wait_for_timeout(400)
    page.screenshot(path=file, full_page=whole)
    if small:
        with Image.open(file) as shot:
            picture = shot.convert("RGB")
        picture.thumbnail((880, picture.height))
        picture.quantize(192, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    door = listen("127.0.0.1", 0)
    server = server_of(create_app(Predictor(arguments.runs[-1])), Limits())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
    thread.start()
    address = f"http://127.0.0.1:{door.getsockname()[1]}"
    try:
        with tempfile.TemporaryDirectory() as temporary, sync_playwright() as player:
            report = epmvg.report(arguments.runs, out=Path(temporary) / "report.html")
            browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
            for name, look in LOOKS.items():
                page = browser.new_context(**look).new_page()

                def take(what: str, *, whole: bool = True, page: Page = page, name: str = name) -> None:
                    shoot(page, arguments.out / f"{what}-{name}.png", whole=whole, small=arguments.small)

                page.goto(address)
                page.wait_for_selector("#samples img")
                take("empty")
                ask(page)
                take("page")
                page.goto(f"{address}/docs")
                page.wait_for_selector("#operations article")
                take("api")
                page.goto(report.absolute().as_uri())
                take("report", whole=False)
                take("report-whole")
            browser.close()
    finally:
        server.should_exit = True
        thread.join()
        door.close()


if __name__ == "__main__":
    main()
