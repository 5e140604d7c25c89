"""The page in a real browser, opened as a file: what a reader clicks, types and presses, the console empty.

Needs `pip install fluxscope[browser]` and Chromium (Debian: `apt-get install chromium`); skipped without.
"""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from fluxscope.atlas.build import build
from fluxscope.files import read_jsonl, write_text
from fluxscope.progress import Reporter
from fluxscope.run.context import Context
from fluxscope.run.rundir import RunDir

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "</script><img src=x onerror=\"document.title='owned'\">\u202e<b>bold</b>"


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or CHROMIUM is None:
        missing = "playwright" if sync_playwright is None else "chromium"
        pytest.skip(f"THE ATLAS IS NOT TESTED IN A BROWSER: {missing} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with sync_playwright() as started:
            opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            yield opened
            opened.close()


@pytest.fixture(scope="module")
def address(finished, tmp_path_factory):
    root = tmp_path_factory.mktemp("browser") / "run"
    shutil.copytree(finished.out_dir, root)
    config = replace(finished, out_dir=str(root))
    manifest = RunDir.of(config).manifest
    rows = [{**row, "prompt": EVIL} if row["prompt_idx"] == 0 else row for row in read_jsonl(manifest)]
    write_text(manifest, "".join(json.dumps(row) + "\n" for row in rows))
    build(Context(config, RunDir.of(config), Reporter(quiet=True)), root / "atlas", 200)
    return (root / "atlas" / "index.html").as_uri()


@pytest.fixture
def page(browser, address):
    """The opened page; at the end: no error, no request that leaves the folder."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong = []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    inside = (address.rsplit("/", 1)[0], "data:", "blob:")
    opened.on("request", lambda r: None if r.url.startswith(inside) else wrong.append(r.url))
    opened.goto(address)
    opened.wait_for_selector(".card")
    yield opened
    opened.close()
    assert wrong == []


def text_of(page):
    return page.inner_text("main")


def test_a_feature_opens_with_its_pictures_and_a_drawn_heatmap(page):
    page.click(".card")
    page.wait_for_selector(".wall")
    assert page.locator(".wall figure").count() > 0
    opaque = page.evaluate(
        "(() => { const c = document.querySelector('.wall canvas');"
        " return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 == 3"
        " && v).length; })()"
    )
    assert opaque > 0
    assert "not measured" in text_of(page)  # steering, stability
    headings = page.locator("main h3").all_inner_texts()
    order = (
        "top pictures",
        "all over its range",
        "Numbers",
        "decoder",
        "same pictures",
        "Prompt words",
        "Steering",
    )
    places = [next(i for i, text in enumerate(headings) if words in text) for words in order]
    assert places == sorted(places)


def test_one_key_shows_heatmap_picture_and_crop(page):
    page.click(".card")
    page.wait_for_selector(".wall canvas")
    canvas = page.locator(".wall canvas").first
    assert canvas.is_visible()
    page.keyboard.press("h")
    assert not canvas.is_visible()
    page.keyboard.press("h")
    assert page.locator(".wall .cropped").count() > 0
    page.keyboard.press("h")
    assert canvas.is_visible()
    assert page.locator(".wall .cropped").count() == 0


def test_search_by_id_and_by_words_but_not_others(page):
    first = page.locator(".card strong").nth(3).inner_text()
    page.keyboard.press("/")
    page.keyboard.type(first)
    assert page.locator(".card strong").all_text_contents() == [first]
    page.fill("#search", "red")
    with_red = set(page.locator(".card strong").all_text_contents())
    page.fill("#search", "red -blue")
    without_blue = set(page.locator(".card strong").all_text_contents())
    assert without_blue < with_red
    page.fill("#search", "zebra")
    assert "No feature fits" in text_of(page)


def test_a_slider_leaves_features_out_and_says_where(page):
    before = page.locator("main [role=status]").inner_text()
    page.locator("input[type=range]").first.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert "at least" in text_of(page)
    assert page.locator("main [role=status]").inner_text() != before


def test_from_a_picture_to_a_token_to_a_feature(page):
    page.click(".card")
    page.wait_for_selector(".wall")
    page.click(".wall .tile")
    page.wait_for_selector(".look")
    assert "Most active features" in text_of(page)
    page.locator(".look > div > .tile").click()
    assert "Row " in text_of(page)
    page.locator(".look > div > .tile").focus()
    page.keyboard.press("ArrowRight")
    page.locator(".look .neighbours a").first.click()
    page.wait_for_selector(".wall")


def test_a_permalink_opens_its_feature_again(page):
    page.click(".card")
    page.wait_for_selector(".wall")
    title = page.inner_text("#title")
    page.reload()
    page.wait_for_selector(".wall")
    assert page.inner_text("#title") == title


def test_the_keyboard_alone_is_enough(page):
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".wall")
    first = page.inner_text("#title")
    page.keyboard.press("j")
    page.wait_for_function("first => document.querySelector('#title')?.innerText !== first", arg=first)
    page.keyboard.press("k")
    page.wait_for_function("first => document.querySelector('#title')?.innerText === first", arg=first)
    page.keyboard.press("g")
    page.wait_for_selector(".card")


def test_a_kept_feature_is_exported(page):
    page.click(".card")
    page.wait_for_selector(".wall")
    page.keyboard.press("s")
    with page.expect_download() as download:
        page.keyboard.press("e")
    listed = json.loads(download.value.path().read_text())["features"]
    assert [str(each["feature_id"]) for each in listed] == [page.inner_text("#title").split()[0]]


def listed(page):
    page.wait_for_selector(".card")
    return int(page.locator("main p[role=status]").inner_text().split()[0])


def test_the_map_is_walked_by_keys_and_shows_pictures_when_near(page):
    everything = listed(page)
    page.keyboard.press("m")
    page.wait_for_selector(".map")
    page.locator(".map").focus()
    for key in "+++++":
        page.keyboard.press(key)
    shown = page.locator(".spots a").count()
    assert 0 < shown < everything
    page.keyboard.press("ArrowRight")
    shown = page.locator(".spots a").count()
    page.keyboard.press("Enter")
    assert listed(page) == shown
    page.click("text=Chosen on the map")
    assert listed(page) == everything


def test_a_lasso_on_the_map_becomes_a_list(page):
    everything = listed(page)
    page.click("text=Map")
    page.wait_for_selector(".map")
    page.click("text=Lasso")
    box = page.locator(".map").bounding_box()
    x, y, half = box["x"], box["y"], box["width"] / 2
    page.mouse.move(x + 20, y + 20)
    page.mouse.down()
    for to in ((half, 20), (half, half), (20, half)):  # a quarter of the map
        page.mouse.move(x + to[0], y + to[1])
    page.mouse.up()
    assert 0 < listed(page) < everything / 2


def test_hostile_prompts_are_shown_as_text(page):
    page.goto(page.url.split("#")[0] + "#picture=0")
    page.wait_for_selector(".look")
    assert "<b>bold</b>" in page.inner_text("#title")
    assert "\u202e" not in page.inner_text("#title")
    assert page.title() == "fluxscope atlas"
    assert page.locator("main b").count() == 0


@pytest.mark.parametrize(
    "hash", ["#feature=99999999", "#feature=x", "#picture=-1", "#picture=9999", "#site=no"]
)
def test_addresses_that_lead_nowhere_say_so(page, hash):
    page.goto(page.url.split("#")[0] + hash)
    page.wait_for_selector(".empty, .card")
    if hash != "#site=no":
        page.wait_for_selector(".empty")


# The rule left out, and preload, would fetch the style sheet, which a page from a folder may not.
RULES = """{
  runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'],
  rules: {'css-orientation-lock': {enabled: false}}, preload: false,
}"""


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core."""
    package = pytest.importorskip("axe_playwright_python", reason="AXE-CORE IS NOT INSTALLED: not checked")
    return (Path(package.__file__).parent / "axe.min.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("hash", "wait"),
    [
        ("#", ".card"),
        ("#feature={}", ".wall"),
        ("#picture=1", ".look"),
        ("#map=1", ".map"),
        ("help", "#help"),
    ],
)
def test_nobody_is_shut_out(page, axe, scheme, hash, wait):
    """axe-core finds nothing: names of controls, contrast, order of headings, roles."""
    page.emulate_media(color_scheme=scheme)
    first = page.locator(".card strong").first.inner_text()
    if hash == "help":
        page.keyboard.press("?")
    else:
        page.goto(page.url.split("#")[0] + hash.format(first))
    page.wait_for_selector(wait)
    page.evaluate(axe)
    found = page.evaluate(
        f"axe.run(document, {RULES}).then((r) => [r.violations, r.passes.map((p) => p.id)])"
    )
    said = [(each["id"], each["help"], [node["target"] for node in each["nodes"]][:3]) for each in found[0]]
    assert said == []
    assert {"color-contrast", "button-name"} <= set(found[1])


def test_a_phone_shows_it_without_scrolling_sideways(page):
    page.set_viewport_size({"width": 360, "height": 700})
    for wait in (".card", ".wall"):
        page.wait_for_selector(wait)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        if wait == ".card":
            page.click(".card")
