"""The pages in a real browser: no errors, no requests, tables that sort, pictures that are there."""

import json
import shutil

import pytest
import report_pages

from diou_jax.analysis.comparison import Side, compare
from diou_jax.reporting import picture_files
from diou_jax.reporting.comparison_page import write_comparison
from diou_jax.reporting.findings import analyse
from diou_jax.reporting.report_page import ReportedRun, TestSet, write_report
from diou_jax.reporting.run_log import RunLog
from diou_jax.reporting.run_page import write_index

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1280,900"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser without a screen that logs its console and all its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: diou-jax[test] has it")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (*ARGUMENTS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A folder with all three pages, and a picture."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    (folder / "pictures").mkdir(parents=True)
    content = report_pages.write_annotations(folder / "a.json")
    both = [report_pages.matches(folder / "a.json", report_pages.results(content, shift=shift)) for shift in (0, 2)]
    album = report_pages.Album()
    rows = [{"step": step, "loss": 2 / step, "loss_cls": 1 / step, "rate": 0.1} for step in range(1, 9)]
    rows.append({"step": 8, "dataset": "val", "eval/AP": 0.25, "eval/AP50": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture_files.write(folder / "pictures" / "0000008_val_#1 é.jpg", report_pages.image(1))
    run = ReportedRun("run", 8, {"solver": {"max_iter": 8}}, rows, [("a", "b")], [("c", "d")])
    write_report(folder, run, [TestSet("val", 6, 1, 20, 2.0, [], {"bbox": analyse(both[0])}, album)])
    with RunLog(folder, active=False) as log:
        write_index(log, training=True)
    sides = [
        Side(f"run <{n}>", "runs/a", 8, {"AP": 0.5, "AP50": 0.5, "AP75": 0.5, "AR1": 0.1}, one, {"test.nms": 0.5 + n})
        for n, one in enumerate(both)
    ]
    compared = compare(sides, dataset="val", resamples=50)
    write_comparison(folder / "comparison.html", [compared], albums={"val": album})
    return folder


def open_page(browser, path):
    """Opens a page; returns the messages of the console and the addresses of all requests but the page's own."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return browser.get_log("browser"), [url for url in sent if url != path.as_uri() and not url.startswith("data:")]


PICTURES = """
const shown = [...document.querySelectorAll("image, img")].map((one) => one.href?.baseVal ?? one.src);
const done = arguments[0];
Promise.all(shown.map((source) => new Promise((resolve) => {
  const picture = new Image();
  picture.onload = () => resolve(picture.naturalWidth);
  picture.onerror = () => resolve(0);
  picture.src = source;
}))).then(done);
"""


@pytest.mark.parametrize("name", ["report.html", "comparison.html", "index.html"])
def test_a_page_opens_without_errors_requests_or_missing_pictures(browser, pages, name):
    console, requests = open_page(browser, pages / name)
    assert console == []
    assert all(url.startswith((pages / "pictures").as_uri()) for url in requests) and (
        not requests or name == "index.html"
    )
    assert browser.title not in ("broken", "")
    widths = browser.execute_async_script(PICTURES)
    assert widths and min(widths) > 0
    # Charts have room, and no part but tables reaches out of the page.
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].map((one) => one.getBoundingClientRect().width)"
    )
    assert sizes and min(sizes) > 200
    for width in (1280, 400):
        browser.set_window_size(width, 900)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    browser.set_window_size(1280, 900)


def column(browser, table, number):
    """Texts of a column of a table, given as a selector."""
    rows = "[...document.querySelector(arguments[0]).tBodies[0].rows]"
    script = f"return {rows}.map((row) => row.cells[arguments[1]].textContent)"
    return browser.execute_script(script, table, number)


CLASSES = "#set1-classes table"


def test_tables_sort_by_click_and_by_key(browser, pages):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, pages / "report.html")
    heads = browser.find_elements(By.CSS_SELECTOR, f"{CLASSES} th[scope=col]")
    before = column(browser, CLASSES, 0)

    def numbers():
        return [float(text) for text in column(browser, CLASSES, 2) if text != "–"]

    buttons = browser.find_elements(By.CSS_SELECTOR, f"{CLASSES} th [role=button]")
    assert len(buttons) == len(heads)
    buttons[2].click()
    assert heads[2].get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True) and column(browser, CLASSES, 2)[-1] == "–"
    buttons[2].send_keys(Keys.ENTER)
    assert heads[2].get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(numbers()) and column(browser, CLASSES, 2)[-1] == "–", "no number is last, either way"
    buttons[0].send_keys(Keys.SPACE)
    assert heads[0].get_attribute("aria-sort") == "ascending" and heads[2].get_attribute("aria-sort") is None
    names = column(browser, CLASSES, 0)
    assert names != before and sorted(names) == sorted(before) and names.index("disc") < names.index("never seen")


def test_a_page_is_whole_without_scripts(browser, pages):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, pages / "report.html")
        from selenium.webdriver.common.by import By

        assert browser.find_elements(By.CSS_SELECTOR, "[role=button], .filter") == [], "no control that does nothing"
        shown = browser.find_element(By.TAG_NAME, "main").text
        for words in (*report_pages.NAMES, "Most AP is lost", "true class by row", "The worst images", "Time"):
            assert words in shown
        browser.find_element(By.TAG_NAME, "summary").click()
        assert browser.find_element(By.CSS_SELECTOR, "details table").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
