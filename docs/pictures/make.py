"""Make the pictures of the README from the sample photos: `make docs`. Needs Chromium.

The terminal shows what the commands really printed; report and upload page are screenshots of a real run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import Browser, expect, sync_playwright
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
NIGHTCAP = [sys.executable, "-c", "from jobs.cli import entry; entry()"]
COLUMNS = 110  # of the terminal
SCALE = 1.5  # device pixels per CSS pixel


def main() -> None:
    with TemporaryDirectory(prefix="nightcap-docs-") as work:
        photos, out = Path(work) / "photos", Path(work) / "captions"
        subprocess.run([sys.executable, "-m", "jobs.samples", "copy", str(photos)], check=True)
        report = Path(work) / "report.html"
        lines = [
            "$ nightcap run photos/ --output captions",
            _output([*NIGHTCAP, "run", str(photos), "--output", str(out)], work),
            "$ nightcap report captions --output report.html",
            _output([*NIGHTCAP, "report", str(out), "--output", str(report)], work),
            "$ nightcap run photos/ --output captions      # the next night",
            _output([*NIGHTCAP, "run", str(photos), "--output", str(out)], work),
            "$ nightcap caption photos/motorcycle_left.png photos/grass.png",
            _output(
                [*NIGHTCAP, "caption", str(photos / "motorcycle_left.png"), str(photos / "grass.png")], work
            ),
        ]
        _terminal("\n".join(lines), HERE / "terminal.svg")
        with _chromium() as browser:
            # Short paths, as in the terminal. The pages let lines end after each slash.
            html = report.read_text().replace(f"{work}/", "").replace(f"{work}/".replace("/", "/<wbr>"), "")
            report.write_text(html)
            page = _page(browser, report.as_uri(), 1000, 1525)
            page.screenshot(path=HERE / "report.png")
            with _service() as url:
                page = _page(browser, url, 1000, 640)
                page.set_input_files(
                    "input[type=file]", [str(photos / name) for name in ("motorcycle_left.png", "grass.png")]
                )
                expect(page.get_by_text("Waiting")).to_have_count(0, timeout=60_000)
                page.screenshot(path=HERE / "upload.png")


def _output(command: list[str], work: str) -> str:
    """What a command prints to both streams, with short paths."""
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.replace(f"{work}/", "")


def _terminal(text: str, file: Path) -> None:
    """Draw text as in a terminal, commands in bold."""
    with Path("/dev/null").open("w") as null:
        console = Console(record=True, width=COLUMNS, file=null)
        for line in text.splitlines():
            console.print(Text(line, style="bold" if line.startswith("$") else ""), soft_wrap=False)
        console.save_svg(str(file), title="nightcap")
    # Names a web font; without it, the browser takes its own monospaced font, and loads nothing.
    file.write_text(re.sub(r"@font-face \{.*?\}\s*", "", file.read_text(), flags=re.DOTALL))


@contextmanager
def _chromium() -> Iterator[Browser]:
    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        sys.exit("make docs needs Chromium: `apt-get install chromium` or the like")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


def _page(browser: Browser, url: str, width: int, height: int) -> Any:
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=SCALE)
    page.goto(url)
    return page


@contextmanager
def _service() -> Iterator[str]:
    """The URL of a `nightcap serve` on a free port."""
    with subprocess.Popen(
        [*NIGHTCAP, "serve", "--port", "0"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stderr is not None  # noqa: S101 - it is a pipe
            for line in process.stderr:
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield found[0]
                    return
            sys.exit("nightcap serve ended")
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
