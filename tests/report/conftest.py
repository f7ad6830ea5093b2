"""Headless Chromium, where it is installed."""

import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    """selenium's driver."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="the browser is driven by selenium: pip install selenium"
    )
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def show(chromium):
    """Opens a file at a width (px), in a colour scheme."""

    def opened(page, width=1400, scheme="light", media=""):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        chromium.get("about:blank")  # the page is read anew, also where it is the last one with a #fragment
        chromium.get(page.as_uri())
        wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait(chromium, 300)
        wait.until(lambda driver: driver.execute_script("return document.readyState") == "complete")
        return chromium

    return opened
