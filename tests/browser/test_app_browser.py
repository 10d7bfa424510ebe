"""app.py as people see it: the real server, opened in headless Chromium. `make test-app`."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from support import ROOT, index_frames, write_fixations, write_video

from gazeqwen.toyworld.examples import toy_examples

FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    """Where the app answers, started as the README says."""
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads")), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "app.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as server:
        try:
            yield next(line.split()[1] for line in server.stdout if line.startswith("open "))
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium and driver, (
        "Debian's packages chromium and chromium-driver are needed: make test-app installs them"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """What people bring: a recording with its table and question, a video alone, and files that are none."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "notes.mp4").write_text("no video")
    write_video(folder / "walk.mp4", index_frames(60, 120, 160))
    write_fixations(folder / "gaze.csv", [(0.2, 1.4, 0.25, 0.5), (1.5, 3, 1.7, 0.5)])
    return folder, toy_examples(folder / "world")


class Page:
    def __init__(self, browser, address: str, size: tuple[int, int]):
        self.browser = browser
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1 + (size == PHONE), "mobile": size == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get_log("performance"), browser.get_log("browser")
        browser.get(address)
        self.until(lambda: "fixation 9" in self.alt())

    def until(self, found, seconds: float = 30):
        return WebDriverWait(self.browser, seconds, ignored_exceptions=[Exception]).until(lambda _: found())

    def all(self, css: str):
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return self.all(css)[0].text

    def labelled(self, name: str):
        """The input of this accessible name."""
        return next(e for e in self.all("input, textarea") if e.accessible_name.startswith(name))

    def alt(self) -> str:
        return self.all("img[alt^='At ']")[0].get_attribute("alt")

    def clear(self) -> None:
        """Remove the example's files."""
        for _ in range(2):
            count = len(self.all("button[aria-label=Clear]"))
            self.all("button[aria-label=Clear]")[0].click()
            self.until(lambda count=count: len(self.all("button[aria-label=Clear]")) == count - 1)

    def upload(self, kind: str, path: Path) -> None:
        """`kind`: what the file input accepts."""
        self.until(lambda: self.all(f"input[type=file][accept*='{kind}']"))[0].send_keys(str(path))

    def type(self, name: str, text: str) -> None:
        field = self.labelled(name)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)  # over what is there: a number's field must not be empty in between

    def tab_to(self, wanted) -> None:
        for _ in range(30):
            self.browser.switch_to.active_element.send_keys(Keys.TAB)
            if wanted(self.browser.switch_to.active_element):
                return
        raise AssertionError("not reached by Tab")

    def answer(self) -> str:
        """The sentence about the answer, once the answer is there."""
        return self.until(lambda: self.text(".verdict"))

    def message(self) -> str:
        return self.until(lambda: self.text("[data-testid=toast-text]"))

    def overflow(self) -> int:
        return self.browser.execute_script("return document.scrollingElement.scrollWidth - innerWidth")

    def screenshot(self, request, name: str, of: str = "body", whole: bool = False) -> None:
        """If the tests are told to: write what is to be seen from an element on, or the whole page."""
        if folder := request.config.getoption("--screenshots"):
            show = "document.activeElement.blur(); document.querySelector(arguments[0]).scrollIntoView()"
            self.browser.execute_script(show, of)
            taken = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": whole})
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(base64.b64decode(taken["data"]))


@pytest.fixture
def page(browser, address):
    return Page(browser, address, DESKTOP)


def test_an_example_is_asked_by_keyboard_alone(page, request):
    reached = []
    page.tab_to(lambda e: reached.append(e.accessible_name) or e.get_attribute("id") == "ask")
    for name in ("What is looked at now?", "range slider for Time", "Question", "Options"):
        assert any(it.startswith(name) for it in reached), (name, reached)
    page.browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert page.answer().startswith("Gaze changed the answer: B. onion")
    assert "The right answer of this example: onion" in page.text("body")
    assert len(page.all(".answer tr")) == 8 and len(page.all(".steps img")) >= 6
    assert all(image.get_attribute("alt") for image in page.all("img"))
    page.screenshot(request, "app.png", whole=True)


def test_ask_and_the_answer_are_seen_without_scrolling(page):
    page.all("#ask")[0].click()
    assert page.answer()
    for css in ("#ask", ".verdict"):
        assert page.all(css)[0].rect["y"] + page.all(css)[0].rect["height"] <= DESKTOP[1]


def test_an_answer_goes_when_its_question_its_time_or_its_gaze_changes(page):
    def change_the_example():
        page.all("input[type=radio]")[1].click()

    for change in (
        lambda: page.type("Question", "What?"),
        lambda: page.type("Options", "a box\na knife"),
        lambda: page.labelled("range slider").send_keys(Keys.ARROW_LEFT),
        lambda: page.all("button[aria-label=Clear]")[1].click(),
        change_the_example,
    ):
        page.all("#ask")[0].click()
        assert page.answer()
        change()
        page.until(lambda: not page.all(".verdict") and not [e for e in page.all(".answer") if e.is_displayed()])
    page.labelled("Question").send_keys("?" + Keys.ENTER)  # what is asked at once after a change is answered
    assert page.answer()


def test_the_video_plays(page):
    next(tab for tab in page.all("[role=tab]") if tab.text == "Video").click()
    player = page.until(lambda: page.all("video"))[0]
    page.browser.execute_script("arguments[0].muted = true; arguments[0].play()", player)
    page.until(lambda: page.browser.execute_script("return arguments[0].currentTime", player) > 0.2)


def test_a_long_answer_stays_in_its_box(page):
    page.type("Options", Keys.DELETE)
    page.labelled("Question").send_keys(Keys.ENTER)
    assert page.answer() == "Gaze changed the answer"
    texts = page.all(".answer p")
    assert all(len(text.text) > 100 and text.get_property("scrollWidth") <= text.rect["width"] + 1 for text in texts)


def test_enter_in_the_question_asks_and_another_example_fills_the_page(page):
    page.all("input[type=radio]")[2].click()
    page.until(lambda: "never gaze at" in page.labelled("Question").get_attribute("value"))
    page.until(lambda: page.alt().startswith("At 20.0 s"))
    page.labelled("Question").send_keys(Keys.ENTER)
    assert page.answer().startswith("Gaze changed the answer")
    page.all("[role=tab]")[0].click()
    tabs = {tab.text: tab for tab in page.all("[role=tab]") if tab.is_displayed()}
    tabs["Attention"].click()
    shown = [image.get_attribute("alt") for image in page.all(".steps img") if image.is_displayed()]
    assert len(shown) == 6 and all(alt.startswith("Where the latents look") for alt in shown)
    tabs["Table"].click()
    assert "fixation" in page.text(".shares")


def test_a_recording_is_uploaded_scrubbed_through_and_asked_about(page, files):
    example = files[1][2]
    page.clear()
    assert page.labelled("Question").get_attribute("value")
    page.upload("video", example.video)
    page.until(lambda: page.labelled("Question").get_attribute("value") == "")
    page.upload("csv", example.table)
    page.until(lambda: "Gaze: " in page.text("body"))
    page.until(lambda: ":" in page.alt())
    before = page.alt()
    page.labelled("range slider").send_keys(Keys.ARROW_LEFT)
    page.until(lambda: page.alt() != before)
    page.type("number input for Time", f"{example.time_s:g}" + Keys.TAB)
    page.until(lambda: page.alt().startswith(f"At {example.time_s:.1f} s"))
    page.type("Options", "\n".join(example.options))
    page.type("Snapping", f"{example.snap_s:g}")  # 0: the question is about what was looked at until now
    page.type("Question", example.question + Keys.ENTER)
    assert f". {example.answer} (" in page.answer().split(" instead of ")[0]


def test_without_a_table_the_base_model_answers_alone(page, files):
    page.clear()
    page.upload("video", files[0] / "walk.mp4")
    page.until(lambda: page.alt() == "At 6.0 s")
    page.type("Options", "a box\na knife")
    page.type("Question", "What is this?" + Keys.ENTER)
    assert page.answer().startswith("No gaze was given.")
    assert "No gaze was given" in page.text(".answer")


def test_a_bad_file_is_a_message_that_names_it(page, files, request):
    page.clear()
    page.upload("video", files[1][0].video)
    page.until(lambda: page.alt() == "At 44.2 s")
    page.upload("csv", files[0] / "gaze.csv")
    expected = "gaze.csv, line 3: x is 1.7, expected 0 to 1 (normalised by the frame's size, origin top-left, y down)"
    assert page.message() == expected
    page.until(lambda: page.all("input[type=file][accept*='csv']"))  # it is not kept
    page.screenshot(request, "app_error.png")
    page.all("[data-testid=toast-close]")[0].click()
    page.until(lambda: not page.all("[data-testid=toast-text]"))
    page.labelled("Question").send_keys("What?" + Keys.ENTER)
    assert page.answer()


def test_what_is_no_video_and_what_is_no_question_are_messages(page, files):
    page.clear()
    page.upload("video", files[0] / "notes.mp4")
    assert page.message().startswith("notes.mp4: not a readable video")
    page.all("[data-testid=toast-close]")[0].click()
    page.until(lambda: not page.all("[data-testid=toast-text]"))
    page.all("#ask")[0].click()
    assert page.message() == "There is no video yet: upload one, or choose an example."
    assert "Traceback" not in page.text("body")


def test_a_recording_plays_live_alerts_light_up_and_a_question_is_asked_in_between(page, request):
    next(tab for tab in page.all("[role=tab]") if tab.text == "Live").click()
    page.until(lambda: page.all("#play")[0].is_displayed())
    assert not page.all(".alerts li")

    def now_s() -> float:
        shown = [image for image in page.all("img[alt^='At ']") if image.is_displayed()]
        return float(shown[0].get_attribute("alt").split()[1])

    page.all("#play")[0].click()
    page.until(lambda: now_s() > 3)
    page.type("Its options", "jar\nsponge")
    page.type("Question about", "Which object is the user currently gazing at?" + Keys.ENTER)
    said = page.until(lambda: next(e.text for e in page.all(".answer") if e.is_displayed()))
    asked_s = float(re.match(r"At ([\d.]+) s: Which object", said)[1])
    assert 3 <= asked_s < 40 and re.search(r"[AB]\. (jar|sponge) \(", said)
    page.until(lambda: now_s() > asked_s + 1)  # it plays on
    page.until(lambda: page.all(".alerts li.raised"), 120)
    assert now_s() >= 16 and page.text(".alerts li.raised").startswith("Monitor my gaze")
    page.screenshot(request, "app_live.png", whole=True)
    assert page.overflow() <= 0


def test_a_phone_shows_everything_without_scrolling_sideways(browser, address, request):
    page = Page(browser, address, PHONE)
    assert page.overflow() <= 0
    page.all("#ask")[0].click()
    assert page.answer()
    page.until(lambda: page.all(".steps img"))
    assert page.overflow() <= 0
    page.screenshot(request, "app_phone.png", of="#ask")


def test_every_input_has_a_name_and_nothing_is_asked_of_the_internet(page):
    page.all("#ask")[0].click()
    assert page.answer()
    inputs = [e for e in page.all("input, textarea") if e.is_displayed()]
    assert len(inputs) >= 10 and all(e.accessible_name for e in inputs)
    events = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(url).hostname for url in sent if url.startswith(("http", "ws"))}
    assert len(sent) > 10 and hosts == {"127.0.0.1"}
    assert not [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
