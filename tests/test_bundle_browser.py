"""The page of a bundle in a browser, as one file without a server, with onnxruntime-web from the npm registry."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from exports import small_model
from tinyruns import QUIET

CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()), None)


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    """A bundle of signals, its model, and its page as one file."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    torch.manual_seed(0)
    model = small_model("signal")
    values = np.random.default_rng(0).normal(size=(4, 2, 24)).astype(np.float32)
    values[1, :, 15:] = np.nan
    folder = tmp_path_factory.mktemp("page") / "made"
    model.export_bundle(folder, data=values, log=QUIET["log"])
    install = ["npm", "install", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        subprocess.run(install, cwd=folder / "web", check=True, capture_output=True, timeout=60)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"onnxruntime-web cannot be installed by npm: {str(error.stderr or error)[-200:]}")
    subprocess.run(["npm", "run", "build"], cwd=folder / "web", check=True, capture_output=True, timeout=60)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 1100})
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto((folder / "web/predict.html").as_uri())
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        yield page, folder, model
        browser.close()
    assert not faults


def test_the_page_passes_the_self_test_offline(page_of):
    page, _, _ = page_of
    page.context.set_offline(True)
    page.click("#self-test")
    page.locator("#status", has_text="self-test").wait_for(timeout=60_000)
    assert page.inner_text("#status").startswith("self-test passed")
    assert page.locator("section.answer").count() == 3
    if picture := os.environ.get("NDVIT_SCREENSHOTS"):
        page.screenshot(path=Path(picture) / "bundle.png", full_page=True)


def test_the_page_answers_a_dropped_table_as_predict_does(page_of, tmp_path):
    page, _, model = page_of
    values = np.random.default_rng(1).normal(size=(2, 24)).astype(np.float32)
    np.savetxt(tmp_path / "new.csv", values.T, delimiter=",", header="a,b", comments="")
    page.set_input_files("#files", tmp_path / "new.csv")
    page.wait_for_selector("section.answer:has-text('new.csv') td.number")
    shown = page.locator("section.answer").first.locator("tr").all_inner_texts()
    (expected,) = model.predict(str(tmp_path / "new.csv"), **QUIET)
    best = sorted(expected.probabilities.items(), key=lambda item: -item[1])
    assert [row.split() for row in shown] == [[name, f"{100 * value:.1f}", "%"] for name, value in best]


def test_the_page_says_what_is_wrong_with_a_file(page_of, tmp_path):
    page, _, _ = page_of
    np.save(tmp_path / "wide.npy", np.zeros((5, 24), np.float32))
    page.set_input_files("#files", tmp_path / "wide.npy")
    page.wait_for_selector("section.answer:has-text('wide.npy') .error")
    assert page.locator("section.answer .error").first.inner_text() == "has 5 channels, expected 2"
