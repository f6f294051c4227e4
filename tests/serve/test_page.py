"""The page in a browser: a picture is drawn, started from, masked, and its options taken over."""

from __future__ import annotations

import base64
import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from .app import Running

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def page(browser, running):
    browser.set_window_size(1200, 900)
    browser.get(running.url)
    wait(lambda: text(browser, "state") == "Ready")
    yield browser
    # Nothing was refused by the page's own policy, and no script failed.
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def wait(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def find(page, name):
    return page.find_element("id", name)


def text(page, name):
    return find(page, name).text


def put(page, **values):
    for name, value in values.items():
        page.execute_script("arguments[0].value = arguments[1]", find(page, name), value)


def draw(page, **values):
    """Draw, and return the number of finished cards."""
    before = len(page.find_elements("css selector", ".card.done"))
    put(page, **values)
    find(page, "draw").click()
    wait(lambda: len(page.find_elements("css selector", ".card.done")) > before)
    return page.find_elements("css selector", ".card.done")


def shown(page, card):
    """Return the pixels of a card's picture."""
    data = page.execute_async_script(
        """
        const [picture, done] = arguments;
        picture.decode().then(() => {
          const canvas = document.createElement("canvas");
          canvas.width = picture.naturalWidth; canvas.height = picture.naturalHeight;
          const context = canvas.getContext("2d");
          context.drawImage(picture, 0, 0);
          done([canvas.width, canvas.height,
                [...context.getImageData(0, 0, canvas.width, canvas.height).data]]);
        });
        """,
        card.find_element("css selector", ".picture"),
    )
    width, height, values = data
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


OPTIONS = {"num_inference_steps": 8, "width": 64, "height": 64, "seed": 7}


def test_a_picture_is_drawn(page, model):
    card, *_ = draw(page, prompt="a dog", **OPTIONS)
    np.testing.assert_array_equal(shown(page, card), model("a dog", **OPTIONS).pixels[0])
    assert card.find_element("css selector", ".told").text == "a dog – seed 7"
    assert card.find_element("css selector", ".picture").get_attribute("alt") == "a dog"
    assert text(page, "state") == "Done: a dog"


def test_it_shows_the_picture_on_the_way_and_cancels(page, running):
    put(page, prompt="a dog", **{**OPTIONS, "num_inference_steps": 200})
    find(page, "draw").click()
    wait(lambda: page.find_elements("css selector", ".card:not(.done) .picture:not([hidden])"))
    page.find_element("css selector", ".card:not(.failed) .cancel").click()
    wait(lambda: page.find_elements("css selector", ".card.failed"))
    assert "cancelled" in page.find_element("css selector", ".card.failed .told").text
    running.until_idle()


def test_a_picture_is_started_from_and_its_options_taken(page, model):
    card, *_ = draw(page, prompt="a dog", **OPTIONS)
    card.find_element("css selector", ".again").click()
    wait(lambda: find(page, "record").is_displayed())
    assert text(page, "record-text").startswith("a dog\nSteps: 8")
    put(page, prompt="", seed="", num_inference_steps="3")
    find(page, "take").click()
    assert find(page, "prompt").get_attribute("value") == "a dog"
    assert find(page, "seed").get_attribute("value") == "7"
    assert find(page, "num_inference_steps").get_attribute("value") == "8"


def test_the_brush_masks_by_keyboard_and_pointer(page, model):
    card, *_ = draw(page, prompt="a dog", **OPTIONS)
    before = shown(page, card)
    card.find_element("css selector", ".again").click()
    wait(lambda: find(page, "editor").is_displayed())
    put(page, brush="30")
    canvas = find(page, "mask")
    for key in [" ", *["\ue012"] * 4, " "]:
        canvas.send_keys(key)
    painted = "const c = arguments[0]; return [...c.getContext('2d')"
    painted += (
        ".getImageData(0, 0, c.width, c.height).data].filter((v, i) => i % 4 == 3 && v).length"
    )
    middle = page.execute_script(painted, canvas)
    assert 0 < middle < 64 * 64
    webdriver.ActionChains(page).drag_and_drop_by_offset(canvas, 40, 40).perform()
    assert page.execute_script(painted, canvas) > middle
    card, *_ = draw(page, prompt="a dog", **{**OPTIONS, "seed": 8})
    after = shown(page, card)
    assert not np.array_equal(after, before)
    # The corner was not painted; the VAE carries little of the rest there.
    corner = np.abs(after[56:, :8].astype(int) - before[56:, :8]).mean()
    assert corner < np.abs(after.astype(int) - before).mean()


def test_a_dropped_picture_is_taken(page):
    content = base64.b64encode(PNG).decode()
    page.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        """,
        content,
    )
    wait(lambda: "8 by 8" in text(page, "state"))


def test_errors_are_said_where_they_are(page):
    put(page, prompt="a dog", **{**OPTIONS, "seed": "12345678901234567890123"})
    page.execute_script("document.getElementById('form').noValidate = true")
    put(page, num_inference_steps="5000")
    find(page, "draw").click()
    wait(lambda: text(page, "trouble"))
    named = page.switch_to.active_element.get_attribute("id")
    assert named in ("seed", "num_inference_steps")
    page.get_log("browser")


def test_it_works_with_the_keyboard_alone_and_on_a_phone(page):
    page.set_window_size(390, 800)
    wide = "return document.documentElement.scrollWidth <= window.innerWidth"
    assert page.execute_script(wide)
    put(page, **OPTIONS)
    find(page, "prompt").clear()
    find(page, "prompt").send_keys("a dog", "\ue009\ue007")
    wait(lambda: page.find_elements("css selector", ".card.done"))
    # Everything that can be used has a name that a screen reader says.
    unnamed = page.execute_script(
        """
        return [...document.querySelectorAll("input, select, textarea, button, canvas, a[href]")]
          .filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel))
          .map((e) => e.outerHTML);
        """
    )
    assert unnamed == []


def test_it_asks_for_a_key_where_one_is_needed(browser):
    guarded = Running(keys="ann s3cret")
    browser.set_window_size(1200, 900)
    browser.get(guarded.url)
    wait(lambda: find(browser, "key").is_displayed())
    assert browser.switch_to.active_element.get_attribute("id") == "key"
    find(browser, "key").send_keys("s3cret", "\ue004")
    wait(lambda: text(browser, "state") == "Ready")
    draw(browser, prompt="a dog", **OPTIONS)
    browser.get_log("browser")
    guarded.stop()


def picture():
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "PNG")
    return content.getvalue()


PNG = picture()
