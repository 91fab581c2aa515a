"""Open a page in a real browser and read what came of it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

PROBE = """
<script>
  const failures = [];
  addEventListener("error", event => failures.push(event.message || "a resource"), true);
  addEventListener("load", () => parent.postMessage(JSON.stringify({
    failures,
    fetched: performance.getEntriesByType("resource").map(entry => entry.name),
    page: [innerWidth, document.documentElement.scrollWidth],
    figures: [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect()),
    letters: [...document.querySelectorAll("svg text")].map(text => text.getBoundingClientRect().height),
    rows: document.querySelectorAll("tbody tr").length,
  }), "*"));
</script>
"""
FRAME = """<!doctype html><body><script>
  addEventListener("message", event => {
    const found = document.createElement("pre");
    found.textContent = event.data;
    document.body.append(found);
  });
</script><iframe src="probe.html" width="WIDTH" height="900"></iframe>"""


def open_page(page: str, width: int, folder: Path) -> dict[str, Any]:
    """Return what a page says of itself: failures, what it fetched, and the sizes of its parts in pixels."""
    (folder / "probe.html").write_text(page.replace("<title>", PROBE + "<title>", 1))
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    command = [str(BROWSER), "--headless", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "frame.html").as_uri()]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.insert(1, "--no-sandbox")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    match = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert match, "the page did not load"
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found
