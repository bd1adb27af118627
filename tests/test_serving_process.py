"""The service as a process: the page in a real browser, and then SIGTERM under load."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import httpx
import numpy as np
import pytest

from servedmodels import save_served

MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # which beeps
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [save_served(name, root / name) for name in ("signals", "pictures", "windows")]


@pytest.fixture(scope="module")
def server(runs):
    """The address and the process of a service that is ready."""
    command = [sys.executable, "-m", "ndvit.cli", "serve", *map(str, runs), "--port", "0", "--no-optimize"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("ready: "):
            break
    rest = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    rest.start()
    found = re.fullmatch(
        r"ready: signals answers at (http://127.0.0.1:\d+)/; pictures, windows at the first request\n", lines[-1]
    )
    assert found, lines
    yield found[1], process
    process.kill()
    process.wait()
    rest.join()
    process.stderr.close()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_the_page_in_a_browser(server, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    address, _ = server
    problems, elsewhere = [], []
    with playwright.sync_playwright() as player:
        try:
            browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *MICROPHONE])
        except playwright.Error as error:
            pytest.skip(f"chromium does not start: {str(error).splitlines()[0]}")
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark", locale="zh-CN")
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None)
        page.on(
            "request",
            lambda one: elsewhere.append(one.url) if one.url.startswith("http") and address not in one.url else None,
        )
        page.goto(f"{address}/")
        page.wait_for_selector("#numbers-open:not([hidden])")
        assert page.locator("html").get_attribute("lang") == "zh"
        page.keyboard.press("Tab")  # everything works by the keyboard
        page.focus("#numbers-open")
        page.keyboard.press("Enter")
        page.keyboard.type("0.1 0.2 0.3 0.4\n1 2 3 4")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector(".pictures canvas")
        assert page.locator(".answer").inner_text() in ("rest", "run")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.click("#language")
        page.select_option("#model", "pictures")
        page.wait_for_selector("#about:has-text('3 classes')")
        picture = tmp_path / "a.png"
        from PIL import Image

        Image.new("RGB", (12, 10), "red").save(picture)
        page.set_input_files("#files", picture)
        page.wait_for_selector(".pictures canvas")
        assert page.locator(".answer").inner_text() in ("cat", "dog", "fox")
        assert page.locator(".bars li").count() == 3
        page.select_option("#model", "windows")
        page.wait_for_selector("#record:not([hidden])")
        page.click("#record")
        page.wait_for_timeout(700)
        page.click("#record")
        page.wait_for_selector(".result h3:has-text('recording.wav')")
        page.wait_for_selector(".answer")
        browser.close()
    assert not problems
    assert not elsewhere


def test_sigterm_finishes_what_was_accepted(server):
    address, process = server
    rows = np.random.default_rng(0).normal(size=(40, 2, 16)).tolist()
    statuses, refused, wrong = [], [], []
    under_load = threading.Event()

    def ask(i):
        with httpx.Client(base_url=address, timeout=20) as client:
            expected = None
            while True:
                try:
                    answer = client.post("/predict", json={"inputs": [rows[i]]})
                except httpx.TransportError as error:
                    refused.append(error)
                    return
                statuses.append(answer.status_code)
                found = answer.json().get("predictions")
                expected = expected or found
                wrong.extend([found] if found != expected and abs(_first(found) - _first(expected)) > 1e-5 else [])
                if len(statuses) > 100:
                    under_load.set()

    threads = [threading.Thread(target=ask, args=[i]) for i in range(16)]
    for thread in threads:
        thread.start()
    assert under_load.wait(20)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(20)
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert set(statuses) == {200}
    assert not wrong
    # a connection is refused, or closed between two answers; none ends within one
    assert not [
        error for error in refused if isinstance(error, httpx.RemoteProtocolError) and "incomplete" in str(error)
    ]


def _first(predictions):
    return next(iter(predictions[0]["probabilities"].values()))
