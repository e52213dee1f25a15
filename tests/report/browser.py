"""A page in headless Chromium, by its command line: what it shows, what it says on the console, what it asks for."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
DARK = "--blink-settings=preferredColorScheme=0"

_FLAGS = [
    "--headless",
    "--no-sandbox",  # in containers, where tests are root; the page is our own
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what the browser wants for itself finds nobody
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=5000",
]


@dataclass(frozen=True)
class Opened:
    """A page that was opened.

    Attributes:
        dom: of the page at its end.
        console: what was said there: by scripts, and by the browser, such as what the page's policy forbids.
        requests: addresses that the page asked for, files of this machine and data within the page apart.
        result: what the script gave that was run in the page.
    """

    dom: str
    console: list[str]
    requests: list[str]
    result: Any = None


def open_page(page: str, folder: Path, *flags: str, script: str = "") -> Opened:
    """Open a copy of a page.

    Args:
        page: HTML.
        folder: an empty one, for the copy and what the browser writes.
        *flags: of the browser.
        script: body of a function that runs when the page is there, and gives something that JSON can hold; it can
            wait for promises.
    """
    copy, log = folder / "page.html", folder / "net.json"
    copy.write_text(_with_script(page, script) if script else page)
    ended = _run(folder, f"--log-net-log={log}", *flags, "--dump-dom", copy.as_uri())
    found = re.search(r'data-result="([^"]*)"', ended.stdout)
    return Opened(
        ended.stdout,
        [line for line in ended.stderr.splitlines() if "CONSOLE" in line],
        _requests(log.read_text()),
        json.loads(html.unescape(found[1])) if found else None,
    )


def widths_of(page: str, folder: Path, windows: Sequence[int]) -> list[tuple[int, int]]:
    """What a page takes in windows of these widths, in pixels, and what they give; in frames of a blank page."""
    text = json.dumps(page).replace("</", "<\\/")
    script = f"""
        const page = {text};
        const widths = [];
        for (const width of {json.dumps(list(windows))}) {{
            const frame = document.createElement("iframe");
            frame.style.width = `${{width}}px`;
            const there = new Promise((done) => {{ frame.onload = done; }});
            frame.srcdoc = page;
            document.body.append(frame);
            await there;
            const root = frame.contentDocument.documentElement;
            widths.push([root.scrollWidth, root.clientWidth]);
            frame.remove();
        }}
        return widths;
    """
    opened = open_page("<!DOCTYPE html><html><body></body></html>", folder, "--window-size=2000,900", script=script)
    return [(taken, given) for taken, given in opened.result]


def print_page(page: str, folder: Path) -> int:
    """Number of sheets of a page that is printed."""
    copy, printed = folder / "page.html", folder / "page.pdf"
    copy.write_text(page)
    _run(folder, "--no-pdf-header-footer", f"--print-to-pdf={printed}", copy.as_uri())
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", printed.read_bytes()))


def _requests(log: str) -> list[str]:
    """Addresses in a net log, an event a line; what the browser asks for itself has no origin."""
    events = [json.loads(line.rstrip(",")) for line in log.splitlines() if line.startswith('{"params":')]
    asked = [event["params"] for event in events if "initiator" in event["params"]]
    urls = [params["url"] for params in asked if params["initiator"] != "not an origin"]
    return [url for url in urls if not url.startswith(("file:", "data:"))]


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *_FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def _with_script(page: str, script: str) -> str:
    """The page with one script more, which its policy allows."""
    code = (
        f"(async () => {{ {script} }})().catch((error) => `failed: ${{error}}`)"
        ".then((result) => { document.documentElement.dataset.result = JSON.stringify(result); });"
    )
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    allowed = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    return allowed.replace("</body>", f"<script>{code}</script></body>")
