"""The picture of a report in README.md: `python benchmarks/report_picture.py RUN/report.html docs/report.png`.

Needs chromium and playwright. Made from the demo's report.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1180, 860
COLOURS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(given.page.resolve().as_uri())
        page.locator('[data-list="confident"]').first.click()
        page.locator("input.tokens").first.check()
        page.evaluate("document.querySelector('.browser').scrollIntoView()")
        page.wait_for_timeout(500)
        shot = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    shot.convert("RGB").quantize(COLOURS).save(given.picture, "PNG", optimize=True)
    print(f"{given.picture}: {given.picture.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
