"""Pages in a real browser: Chromium without a window, where it is installed."""

import html
import re
import shutil
import subprocess

import pytest


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")


def browse(url: str, folder, *options: str, width: int = 1280, height: int = 900, wait_ms: int = 2000):
    """What Chromium prints, and what it logs, for a page in a window of that size; `folder` is its profile."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", "--hide-scrollbars",
        f"--virtual-time-budget={wait_ms}", *options, url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def dom(url: str, folder, **options) -> tuple[str, list[str]]:
    """The page as it is when its scripts have run, and what its console says."""
    page, log = browse(url, folder, "--dump-dom", **options)
    return page, [html.unescape(line) for line in log.splitlines() if re.search(r":CONSOLE[:(]", line)]


def screenshot(url: str, folder, path, **options) -> bytes:
    browse(url, folder, f"--screenshot={path}", **options)
    return path.read_bytes()
