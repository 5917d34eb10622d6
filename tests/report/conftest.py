"""The machine's own Chromium, and what keeps people out of a page."""

import shutil

import pytest


@pytest.fixture(scope="package")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def barriers():
    """A function: what on a page, as it is now, axe says that a reader or a key cannot pass."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def found(page):
        violations = axe.run(page).response["violations"]
        return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in violations]

    return found
