"""The app as a person uses it, in Chromium: served by the real command, clicked, typed into, read.

Every test fails on a console error, a page error, an exception box, a request to another site, or when text of the
corpus was run as a script or read as markup.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscope.query.recording import Recording
from tests.app_folder import HOSTILE_CLUSTER, make_folder
from tests.browser.app_browser import (
    ARGUMENTS,
    CHROMIUM,
    SIZE,
    check,
    follow,
    menu,
    new_tab,
    reader,
    served,
    settle,
    visit,
    watched,
    watched_tab,
)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason=f"no Chromium at {CHROMIUM}"),
]
expect = playwright.expect
VIEWS = {
    "Overview": ["?part=health", "?part=model", "?part=training", "?part=recordings"],
    "Prompts": ["prompts?doc=0", "prompts?doc=0&by=drift+of+the+read+entry&token=3", "prompts?source=two+texts"],
    "Entries": ["entries", "entries?entry=0", "entries?q=script"],
    "Map": ["map", "map?by=cluster", "map?by=predicate&q=born", "map?lasso=0_-2000.2000_-2000.2000_2000.0_2000"],
    "Gate bias": [
        f"gate_bias?part={part}"
        for part in ("evenness", "concentration", "preferences", "profiles", "layers", "report")
    ],
    "Reading": [f"reading?part={part}" for part in ("shares", "gate+against+read", "unread+entries", "certainty")],
    "Facts": ["facts"],
    "What if": ["what_if", "what_if?change=ablate&entries=0%2C1&text=Ada+%3Cb%3EHolm%3C%2Fb%3E"],
    "Compare": ["compare?part=metrics", "compare?part=entries", "compare?part=prompt&text=Ada+%3Cb%3EHolm%3C%2Fb%3E"],
}


@pytest.fixture(scope="module")
def server(tiny_recording_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, object]]:
    folder = make_folder(tiny_recording_path, tmp_path_factory.mktemp("served") / "recordings")
    with served(folder) as running:
        yield running


@pytest.fixture(scope="module")
def address(server) -> str:
    return server[0]


@pytest.fixture(scope="module")
def hostile_entry(tiny_recording: Recording) -> int:
    """The one entry whose sentence holds markup."""
    [entry] = tiny_recording.sql("SELECT entry FROM bank WHERE contains(sentence, '<script>')")["entry"]
    return int(entry)


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=60_000)  # a busy machine is no failure
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def context(browser):
    return reader(browser)


@pytest.fixture(scope="module")
def kept_tab(context):
    """What tests use one after the other: the first page of a tab takes twice as long as the next ones."""
    return new_tab(context)


@pytest.fixture
def page(kept_tab, address: str):
    """A tab without a page of the app; each load of one is a session of its own for the server."""
    kept_tab.goto(f"{address}/_stcore/health")
    kept_tab.set_viewport_size(SIZE)
    kept_tab.emulate_media(color_scheme="light")
    kept_tab.mouse.move(0, 0)
    with watched(kept_tab, address):
        yield kept_tab


def tokens(page):
    return page.get_by_role("listbox", name=re.compile("Tokens")).get_by_role("option")


def expect_address(page, pattern: str) -> None:
    """Streamlit changes the address a moment after the page."""
    expect(page).to_have_url(re.compile(pattern))


def heading(page, name: str) -> None:
    page.get_by_role("heading", name=name, exact=True).wait_for()
    settle(page)


def choose_first_row(page) -> None:
    """Click the box of a table's first row; rows are drawn on a canvas, a moment after the table stands."""
    table = page.get_by_test_id("stDataFrame").first
    table.locator("canvas").first.wait_for()
    page.wait_for_timeout(500)
    box = table.bounding_box()
    page.mouse.click(box["x"] + 18, box["y"] + 53)


def map_stage(page):
    stage = page.locator(".stage[data-ready]")
    stage.wait_for()
    return stage


def test_a_reader_walks_from_a_prompt_to_the_report_and_pastes_the_addresses(page, context, address: str) -> None:
    visit(page, f"{address}/?recording=tiny", "Overview")
    expect(page.get_by_text("of entries never selected in layer").first).to_be_visible()
    expect(page.get_by_text("What is a memory entry?")).to_be_visible()
    visited = {}

    menu(page, "Prompts")
    page.get_by_role("radio", name="Your text", exact=True).click()
    page.get_by_label("Text to read").fill("Ada Holm was born in <b>Aston</b> 漢 .")
    page.get_by_role("button", name="Read it").click()
    expect(page.get_by_role("listbox", name=re.compile("Tokens"))).to_contain_text("<b>Aston</b> 漢")
    settle(page)
    expect(page.locator(".unit .token")).to_have_count(3)  # one character of three tokens
    expect(page.locator(".unit .token").nth(1)).to_have_attribute("title", re.compile("漢 2/3, bytes bc"))
    expect(page.locator(".token.special")).to_have_text("<|im_start|>")
    expect(tokens(page).last).to_have_attribute("aria-selected", "true")
    page.set_viewport_size({"width": 480, "height": 900})
    wide = page.locator(".row .sentence").first.evaluate("line => line.clientWidth / line.closest('.box').clientWidth")
    assert wide > 0.9  # rows are stacked
    page.set_viewport_size({"width": 1280, "height": 900})
    tokens(page).nth(2).click()
    heading(page, "Token 2")
    expect(page.get_by_role("region", name="Most likely next tokens")).to_be_visible()
    expect_address(page, "token=2")
    visited[page.url] = ("Prompts", "Token 2")

    first = page.locator(".row .link.number").first
    number = first.inner_text()
    first.click()
    heading(page, f"Entry {number}")
    expect_address(page, rf"entries\?.*entry={number}")
    expect(page.get_by_role("heading", name="Highest gate scores")).to_be_visible()
    visited[page.url] = ("Entries", f"Entry {number}")
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    for key in ("n", "p"):  # through the order of the table and back
        page.keyboard.press(key)
        settle(page)
    heading(page, f"Entry {number}")

    page.get_by_role("button", name="Show on the map").click()
    heading(page, "Map")
    map_stage(page)
    expect_address(page, rf"map\?.*entry={number}")
    expect(page.get_by_text(f"Entry {number}", exact=True)).to_be_visible()
    visited[page.url] = ("Map", None)

    menu(page, "Overview")
    page.get_by_role("button", name="Make the report").click()
    heading(page, "Gate bias")
    paper = page.frame_locator("iframe[title='The report']")
    paper.get_by_role("heading", name="Gate-bias report").wait_for(timeout=120_000)
    paper.get_by_role("link", name="Method", exact=True).click()
    expect(paper.get_by_role("heading", name="Method", exact=True)).to_be_in_viewport()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download this page").click()
    assert "Gate-bias report" in Path(download.value.path()).read_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all files").click()
    names = zipfile.ZipFile(download.value.path()).namelist()
    assert {"gate_bias.html", "usage.csv", "usage.parquet", "metrics.json"} <= set(names)
    visited[page.url] = ("Gate bias", None)

    for url, (title, part) in visited.items():
        with watched_tab(context, address) as other:
            visit(other, url, title)
            if part:
                heading(other, part)
            assert other.url == url


def test_back_and_forward_lead_through_what_was_seen(page, address: str) -> None:
    visit(page, f"{address}/prompts?recording=tiny&doc=1", "Prompts")
    for number in (7, 9, 12):
        tokens(page).nth(number).click()
        heading(page, f"Token {number}")
        expect_address(page, f"token={number}")
    page.go_back()
    heading(page, "Token 9")
    assert tokens(page).nth(9).get_attribute("aria-selected") == "true"
    page.go_back()
    heading(page, "Token 7")
    page.go_back()
    heading(page, "Token 1")
    page.go_forward()
    page.go_forward()
    heading(page, "Token 9")
    page.locator(".row .link.number").first.click()
    page.get_by_role("heading", name=re.compile("^Entry ")).wait_for()
    settle(page)
    page.go_back()
    heading(page, "Prompts")
    heading(page, "Token 9")
    expect_address(page, "doc=1.*token=9")


@pytest.mark.parametrize("title", VIEWS)
def test_every_view_stands_with_all_text_as_text(page, address: str, title: str) -> None:
    page.emulate_media(color_scheme="dark" if list(VIEWS).index(title) % 2 else "light")
    for number, view in enumerate(VIEWS[title]):  # the first as a new page, which takes longest
        go = follow if number else visit
        go(page, f"{address}/{view}{'&' if '?' in view else '?'}recording=tiny", title)
        page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")
        check(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_text_is_text(page, address: str, hostile_entry: int) -> None:
    visit(page, f"{address}/prompts?recording=tiny&doc=0", "Prompts")
    shown = page.get_by_role("listbox", name=re.compile("Tokens"))
    expect(shown).to_contain_text("<script>window.hacked = true</script>")
    expect(shown).to_contain_text("**bold**")
    expect(shown).to_contain_text("$x^2$")
    expect(page.get_by_label("Document", exact=True).first).to_have_value("0: <b>Hostile</b>")
    follow(page, f"{address}/entries?recording=tiny&entry={hostile_entry}", "Entries")
    expect(page.get_by_text("<img src=x onerror=", exact=False).first).to_be_visible()
    expect(page.get_by_text("**bold**", exact=False).first).to_be_visible()
    follow(page, f"{address}/map?recording=tiny&by=cluster&entry={hostile_entry}", "Map")
    map_stage(page)
    expect(page.locator(".names .name").filter(has_text=HOSTILE_CLUSTER)).to_be_visible()
    check(page)


def test_the_menu_leads_to_every_page_and_back_to_what_was_open(page, address: str) -> None:
    visit(page, f"{address}/prompts?recording=tiny&doc=1&token=5", "Prompts")
    for title in ("Entries", "Map", "Gate bias", "Reading", "Facts", "What if", "Compare", "Overview"):
        menu(page, title)
        expect_address(page, "recording=tiny")
    menu(page, "Prompts")
    heading(page, "Token 5")


def test_tokens_and_cells_can_be_picked_with_the_keyboard(page, address: str) -> None:
    visit(page, f"{address}/prompts?recording=tiny&token=3", "Prompts")
    tokens(page).nth(3).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    heading(page, "Token 4")
    assert page.evaluate("document.activeElement.shadowRoot?.activeElement?.title ?? document.activeElement.title")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    settle(page)
    expect_address(page, r"token=(1[1-9]|[2-9]\d)")
    page.get_by_role("img", name=re.compile("arrow keys move")).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    settle(page)
    expect_address(page, "layer=1")


def test_a_cell_of_the_grid_chooses_token_and_layer(page, address: str) -> None:
    visit(page, f"{address}/prompts?recording=tiny&doc=1", "Prompts")
    grid = page.get_by_role("img", name=re.compile("arrow keys move"))
    grid.hover(position={"x": 90, "y": 25})
    expect(page.locator(".tip").first).to_contain_text("layer 1 · token")
    grid.click(position={"x": 90, "y": 25})
    settle(page)
    expect_address(page, r"layer=1.*token=\d+|token=\d+.*layer=1")


def test_an_entry_lights_up_in_the_text(page, address: str) -> None:
    visit(page, f"{address}/prompts?recording=tiny&doc=1&token=6", "Prompts")
    page.get_by_role("button", name="colour text").first.click()
    settle(page)
    expect_address(page, r"by=one.entry")
    expect(page.get_by_role("button", name="colour as before").first).to_be_visible()
    lit = page.evaluate(
        """() => { const box = [...document.querySelectorAll('*')].map(e => e.shadowRoot?.querySelector('.tokens'))
        .find(Boolean); return [...box.children].filter(e => e.style.getPropertyValue('--level') !== '0.0%').length }"""
    )
    assert lit >= 1


def test_entries_can_be_searched_sorted_opened_and_followed(page, address: str, hostile_entry: int) -> None:
    visit(page, f"{address}/entries?recording=tiny&in=sentence", "Entries")
    page.get_by_role("textbox", name="Search").fill("script")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 of 64 entries")).to_be_visible()
    settle(page)
    expect_address(page, "q=script")
    choose_first_row(page)
    heading(page, f"Entry {hostile_entry}")
    expect(page.get_by_text("<script>window.hacked").first).to_be_visible()
    page.get_by_role("button", name="All entries").click()
    expect(page.get_by_text("1 of 64 entries")).to_be_visible()
    settle(page)
    visit(page, f"{address}/entries?recording=tiny", "Entries")
    choose_first_row(page)
    page.locator("button.context").first.wait_for()
    settle(page)  # while the page is drawn its buttons are replaced
    page.locator("button.context").first.click()
    heading(page, "Prompts")
    expect_address(page, r"prompts\?.*recording=tiny")


def test_what_is_chosen_in_a_histogram_filters_the_others_the_table_and_the_map(page, address: str) -> None:
    visit(page, f"{address}/entries?recording=tiny", "Entries")
    bars = page.locator("section.panel").filter(has_text="drift").locator(".bars")
    first, third = (bars.get_by_role("button").nth(number).bounding_box() for number in (0, 2))
    page.mouse.move(first["x"] + 2, first["y"] + 5)
    page.mouse.down()
    page.mouse.move(third["x"] + 2, third["y"] + 5, steps=4)
    page.mouse.up()
    expect_address(page, r"drift=[\d.]+_[\d.]+")
    expect(bars.locator("[aria-pressed=true]")).to_have_count(3)
    left = page.locator("summary").filter(has_text=re.compile(r"\d+ of 64 entries left"))
    left.wait_for()
    settle(page)
    said = left.inner_text()
    page.get_by_role("button", name="On the map").click()
    heading(page, "Map")
    expect_address(page, r"map\?.*drift=")
    expect(page.locator("summary").filter(has_text=said.splitlines()[0])).to_be_visible()
    expect(page.get_by_text(re.compile(r"\d+ entries that the filter leaves"))).to_be_visible()
    page.locator(".list").get_by_role("button", name=re.compile("^most in layer 1")).press("Enter")
    expect_address(page, r"most_in=layer.1")
    page.get_by_role("button", name="Clear all").click()
    expect(page.get_by_text("Draw a lasso, search or filter")).to_be_visible()
    settle(page)
    assert "drift" not in page.url and "most_in" not in page.url
    stage = map_stage(page).bounding_box()
    assert page.locator(".scale").bounding_box()["x"] > stage["x"] + stage["width"]  # beside the map
    page.set_viewport_size({"width": 480, "height": 900})
    settle(page)
    stage = map_stage(page).bounding_box()
    assert stage["height"] <= stage["width"] + 1 < 480  # so that all points are in its frame
    visit(page, f"{address}/?recording=tiny&part=training", "Overview")
    wide = page.locator("[class*=st-key-wide-] img").first
    wide.wait_for()
    assert wide.evaluate("image => image.clientWidth") > 600  # legible: it is moved, and the page is not
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_points_of_the_map_are_hovered_clicked_and_lassoed(page, address: str) -> None:
    visit(page, f"{address}/map?recording=tiny", "Map")
    stage = map_stage(page)
    assert stage.get_attribute("data-points") == "64"
    box = stage.locator("canvas").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tip = page.locator(".map .tip")
    for step in range(0, 200, 3):  # the points lie on a circle: go outwards until one answers
        page.mouse.move(middle[0] + 150 + step, middle[1])
        page.wait_for_timeout(15)
        if tip.inner_text():
            break
    expect(tip).to_contain_text(re.compile(r"entry \d+ · [\d,]+ selections"))
    page.mouse.down()
    page.mouse.up()
    settle(page)
    expect_address(page, r"entry=\d+")
    page.get_by_role("button", name="Lasso", exact=True).click()
    far = 0.47 * box["height"]
    corners = [(0, -far), (far, -far), (1.2 * far, 0), (far, far), (0, far), (0, -far)]
    page.mouse.move(middle[0] + corners[0][0], middle[1] + corners[0][1])
    page.mouse.down()
    for x, y in corners[1:]:
        page.mouse.move(middle[0] + x, middle[1] + y, steps=4)
        page.wait_for_timeout(30)
    page.mouse.up()
    expect(page.get_by_text("inside the lasso")).to_be_visible()
    settle(page)
    expect_address(page, r"lasso=-?\d+_")
    table = page.get_by_role("region", name="Entries that were selected on the map")
    expect(table).to_be_visible()
    url = page.url
    visit(page, url, "Map")
    expect(page.get_by_text("inside the lasso")).to_be_visible()


def test_the_figures_of_gate_bias_follow_the_choice(page, address: str) -> None:
    visit(page, f"{address}/gate_bias?recording=tiny", "Gate bias")
    figures = page.get_by_test_id("stImage").locator("img")
    expect(figures).to_have_count(2)
    before = figures.first.get_attribute("src")
    page.get_by_role("radio", name="read weight").click()
    settle(page)
    page.wait_for_function("([image, old]) => image.src !== old", arg=[figures.first.element_handle(), before])
    expect_address(page, "by=read")
    with page.expect_download() as download:
        page.get_by_role("button", name="Evenness as CSV").click()
    assert Path(download.value.path()).read_text().startswith("layer,entries,selections")


def test_a_report_can_be_stopped_while_it_is_made(page, address: str) -> None:
    visit(page, f"{address}/gate_bias?recording=deeper%2Ftwin&part=report", "Gate bias")
    page.get_by_role("button", name="Make the report").click()
    page.get_by_test_id("stMain").get_by_role("button", name="Stop", exact=True).click()
    settle(page)
    expect(page.get_by_role("button", name="Make the report")).to_be_visible()
    expect(page.get_by_role("button", name="Download all files")).to_have_count(0)


def test_another_recording_is_chosen_and_compared(page, address: str) -> None:
    visit(page, f"{address}/compare?recording=tiny", "Compare")
    page.get_by_role("button", name="Measure it").click()
    expect(page.get_by_role("region", name="Likeness of usage per layer")).to_be_visible()
    page.get_by_label("Recording", exact=True).first.click()
    page.get_by_role("option", name="deeper/twin").click()
    settle(page)
    expect_address(page, "recording=deeper")
    expect(page.get_by_role("heading", name="Compare", exact=True)).to_be_visible()


def test_an_entry_is_ablated_in_a_typed_text(page, server, hostile_entry: int) -> None:
    address, process = server
    visit(page, f"{address}/what_if?recording=tiny", "What if")
    page.get_by_label("Text to read").fill("Ada <b>Holm</b> was born in")
    page.get_by_role("button", name="Read it").click()
    settle(page)
    page.get_by_label("Entries", exact=True).fill(str(hostile_entry))
    page.get_by_role("button", name="Change it").click()
    settle(page)
    expect(page.get_by_role("heading", name="What changes")).to_be_visible()
    expect(page.get_by_role("listbox", name=re.compile("Tokens"))).to_contain_text("<b>Holm</b>")
    assert f"entries={hostile_entry}" in page.url
    page.get_by_role("radio", name="scale the memory").click()
    settle(page)
    expect(page.get_by_role("heading", name="What changes")).to_be_visible()
    check(page)
    [model] = process.children()
    torch = [any("libtorch" in part.path for part in one.memory_maps()) for one in (process, model)]
    assert torch == [False, True]  # the pages' process stays free of it


def test_a_bad_address_gets_a_sentence(page, address: str) -> None:
    visit(page, f"{address}/entries?recording=tiny&entry=99999", "Entries")
    expect(page.get_by_text("There is no such entry")).to_be_visible()
    visit(page, f"{address}/prompts?recording=tiny&doc=abc&token=-4", "Prompts")
    expect(page.get_by_text("There is no such doc")).to_be_visible()
    expect(page.get_by_text("There is no such token")).to_be_visible()
    visit(page, f"{address}/?recording=..%2F..%2Fetc", "Overview")
    expect(page.get_by_text("There is no such recording")).to_be_visible()


def test_three_readers_keep_their_own_views_and_memory_settles(context, server) -> None:
    address, process = server
    tabs = [context.new_page() for _ in range(3)]  # the server knows readers by their tabs
    for tab in tabs:
        tab.goto(f"{address}/prompts?recording=tiny&doc=1")
    for tab in tabs:
        tab.get_by_role("heading", name="Prompts", exact=True).wait_for()
        settle(tab)
    titles = ["Entries", "Map", "Gate bias", "Reading", "Compare", "Overview"]
    sizes = []

    def go_all(names: list[str]) -> None:  # nobody waits for anybody
        for tab, name in zip(tabs, names, strict=True):
            tab.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
        for tab, name in zip(tabs, names, strict=True):
            tab.get_by_role("heading", name=name, exact=True).wait_for()
            check(tab)

    for turn in range(4):
        chosen = [(7 * number + 11 * turn) % 40 for number in range(len(tabs))]
        for tab, token in zip(tabs, chosen, strict=True):
            tokens(tab).nth(token).click()
        for tab, token in zip(tabs, chosen, strict=True):
            tab.get_by_role("heading", name=f"Token {token}", exact=True).wait_for()
            expect_address(tab, rf"token={token}\b" if token else "doc=1")
        go_all([titles[(number + turn) % len(titles)] for number in range(len(tabs))])
        go_all(["Prompts"] * len(tabs))
        for tab, token in zip(tabs, chosen, strict=True):
            tab.get_by_role("heading", name=f"Token {token}", exact=True).wait_for()
        sizes.append(process.memory_info().rss / 1e6)
    for tab in tabs:
        tab.close()
    assert sizes[-1] < 1.05 * sizes[1] + 10, sizes
