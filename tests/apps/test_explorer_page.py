"""The data room's page in headless Chromium, on a folder that means harm: what people do there, and that nothing else
happens."""

from __future__ import annotations

import csv
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_folder import CAPTIONS, make

for package in ("fastapi", "uvicorn", "duckdb", "faiss"):
    pytest.importorskip(package)
webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver"),
]

import uvicorn  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from sfumato.apps.explorer.query import Options  # noqa: E402
from sfumato.apps.explorer.room import Room  # noqa: E402
from sfumato.apps.explorer.web.guard import Key  # noqa: E402
from sfumato.apps.explorer.web.serve import bound  # noqa: E402
from sfumato.apps.explorer.web.server import create  # noqa: E402

VIEWS = ("pictures", "table", "duplicates", "outliers", "map", "captions", "health")
WIDE, PHONE = (1440, 900), (390, 844)


class Served:
    """A room behind a real server, in a thread of this process."""

    def __init__(self, source: str, *, embed: bool = True) -> None:
        self.room = Room.open(source, Options(embed=embed))
        self.door = bound(0)
        self.key = Key(self.door.getsockname()[1])
        settings = uvicorn.Config(
            create(self.room, self.key, name="pictures"), log_level="error", lifespan="off", ws="none"
        )
        self.server = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.door]}, daemon=True)
        self.thread.start()
        wait(lambda: self.room.progress()["ready"]["table"] and not (embed and self.room.progress()["stage"]), 240)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.room.close()
        self.door.close()


def wait(told: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `told` returns as soon as it is true."""
    until = time.monotonic() + seconds
    while not (found := told()) and time.monotonic() < until:
        time.sleep(0.05)
    assert found, "it did not happen"
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("page-cache")
        patch.setenv("SFUMATO_CACHE", str(home))
        yield home


@pytest.fixture(scope="module")
def served(folder: Path, cache: Path) -> Iterator[Served]:
    one = Served(str(folder))
    yield one
    one.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    one = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    one.downloads = tmp_path_factory.mktemp("downloads")
    one.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(one.downloads)})
    yield one
    one.quit()


class Page:
    """What a person sees and does."""

    def __init__(self, browser: Any, served: Served, size: tuple[int, int] = WIDE, *, dark: bool = False) -> None:
        self.browser = browser
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size is PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get("about:blank")
        browser.get(served.key.address)
        browser.execute_script("sessionStorage.clear(); localStorage.clear()")
        browser.get(served.key.address)
        wait(lambda: self.all(".cell.loaded"))

    def all(self, css: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", css))

    def one(self, css: str) -> Any:
        return wait(lambda: self.all(css))[0]

    def text(self, css: str) -> str:
        return str(self.browser.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", css))

    def view(self, name: str) -> None:
        self.browser.execute_script("document.getElementById(arguments[0]).click()", f"tab-{name}")
        wait(lambda: self.browser.execute_script("return document.body.dataset.view") == name)

    def keys(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def search(self, words: str, found: str) -> None:
        box = self.one("#search")
        box.clear()
        box.send_keys(words)
        wait(lambda: self.text("#count").startswith(found))

    def errors(self) -> list[str]:
        """What the console complains of."""
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]

    def overflow(self) -> int:
        """Pixels that stick out at the right of the window."""
        return int(self.browser.execute_script("return document.documentElement.scrollWidth - innerWidth"))


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Page]:
    one = Page(browser, served)
    yield one
    assert one.errors() == []
    assert browser.title == "pictures · data room"  # no caption ran


def test_it_opens_and_the_key_is_out_of_sight(page, served):
    wait(lambda: len(page.all(".cell.loaded")) == served.room.page(_everything(), 0, 1)["total"])
    assert served.key.secret not in page.browser.current_url
    assert page.all(".facet") and not page.all("main img[src^='http']")


def _everything() -> Any:
    from sfumato.apps.explorer.query import Query

    return Query()


def test_hostile_captions_are_text(page):
    page.search("temple", "1 of")
    page.one(".cell").click()
    wait(lambda: page.text(".caption") == CAPTIONS[0])
    assert not page.all(".caption *") and not page.all("script:not([src])")
    page.keys(Keys.ESCAPE)
    wait(lambda: not page.all(".detail:not([hidden])"))


def test_search_brush_select_and_export(page, served):
    total = served.room.page(_everything(), 0, 1)["total"]
    page.search("roof", "2 of")
    wait(lambda: len(page.all(".cell")) == 2)
    page.browser.execute_script("document.getElementById('view-pictures').focus()")
    page.keys(" ", Keys.ARROW_RIGHT, " ")
    wait(lambda: "2 selected" in page.text("#selection"))
    page.one(".chip button").click()
    wait(lambda: page.text("#count").startswith(f"{total} pictures"))
    assert "2 selected" in page.text("#selection")  # it stays while one filters
    page.one("#facets[aria-busy=false] .facet")
    drawing = page.one("svg.histogram")
    ActionChains(page.browser).move_to_element_with_offset(drawing, -60, 0).click_and_hold().move_by_offset(
        90, 0
    ).release().perform()
    wait(lambda: " of " in page.text("#count") and page.all(".chip"))
    assert "2 selected" in page.text("#selection")
    page.one("#export-csv").click()
    file = page.browser.downloads / "pictures.csv"
    wait(lambda: file.exists() and file.stat().st_size)
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {row["caption"].lstrip("'") for row in rows} == {CAPTIONS[1].lstrip("'"), CAPTIONS[9]}


def test_the_keyboard_walks_the_wall_and_the_pictures(page):
    page.browser.execute_script("document.getElementById('view-pictures').focus()")
    page.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
    first = wait(lambda: page.text(".detail .filename"))
    page.browser.execute_script("document.activeElement.blur()")
    page.keys(Keys.ARROW_RIGHT)
    wait(lambda: page.text(".detail .filename") not in ("", first))
    page.keys(Keys.ARROW_LEFT)
    wait(lambda: page.text(".detail .filename") == first)
    page.keys(Keys.ESCAPE, "/")
    wait(lambda: page.browser.switch_to.active_element.get_attribute("id") == "search")


def test_a_picture_that_is_dropped_finds_itself(page, folder):
    page.one("#file").send_keys(str(folder / "photo 07.png"))
    wait(lambda: "A picture of yours" in page.text("#detail"))
    wait(lambda: page.text(".chip").startswith("like photo 07.png"))
    wait(lambda: page.all("#cell-0[title^='photo 07.png']"))
    assert len(page.all("#detail .mini")) > 3


def test_copies_side_by_side_and_all_but_one_selected(page, served):
    page.view("duplicates")
    wait(lambda: page.all(".group"))
    extra = served.room.duplicates()["extra"]
    page.one("#all-but-one").click()
    wait(lambda: f"{extra} selected" in page.text("#selection"))


def test_the_table_sorts(page):
    page.view("table")
    wait(lambda: page.all(".table .sheet .line"))
    head = next(one for one in page.all(".line.head .by") if one.text.strip() == "Name")
    head.click()
    wait(lambda: page.all(".by[aria-sort='ascending']"))
    wait(lambda: len(names(page)) > 5 and names(page) == sorted(names(page)))


def names(page: Page) -> list[str]:
    lines = page.browser.execute_script(
        "return [...document.querySelectorAll('.table .sheet .line')].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)"
        ".map((line) => line.children[2].textContent)"
    )
    return [str(one) for one in lines]


def test_what_was_left_out_is_told(page):
    page.view("health")
    wait(lambda: "broken.png" in page.text("#view-health"))
    assert page.text("#tab-health").endswith("1")


def test_a_view_is_an_address(page):
    page.search("roof", "2 of")
    page.view("table")
    page.browser.refresh()
    wait(lambda: page.text("#count").startswith("2 of") and page.all(".table .sheet .line"))
    page.browser.back()
    wait(lambda: page.browser.execute_script("return document.body.dataset.view") == "pictures")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_sticks_out(browser, served, size, dark):
    page = Page(browser, served, size, dark=dark)
    for view in VIEWS:
        page.view(view)
        time.sleep(0.4)
        assert page.overflow() <= 0, view
    page.view("pictures")
    page.one(".cell").click()
    wait(lambda: page.all(".detail:not([hidden]) .large img"))
    assert page.overflow() <= 0 and page.errors() == []
    background = page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.strip("rgb()").split(","))) < 3 * 64) is dark


def test_a_long_wall_keeps_only_what_is_in_sight(browser, cache):
    """1,797 digits: scrolled to the end, the last one is there, and few others are."""
    pytest.importorskip("sklearn")
    served = Served("digits", embed=False)
    try:
        page = Page(browser, served)
        total = served.room.page(_everything(), 0, 1)["total"]
        assert total == 1797 and len(page.all(".cell")) < 300
        page.browser.execute_script("document.getElementById('view-pictures').focus()")
        page.keys(Keys.END)
        wait(lambda: page.all(f"#cell-{total - 1}.loaded"))
        assert len(page.all(".cell")) < 300 and not page.all("#cell-0")
        page.keys(Keys.HOME)
        wait(lambda: page.all("#cell-0.loaded"))
        assert page.errors() == []
    finally:
        served.close()
