"""The site of a recording: whole or absent, complete, self-contained, and safe to open from disk in Chromium."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from memscope.base.errors import InputError
from memscope.base.files import write_text
from memscope.base.printable import printable
from memscope.base.words import visible
from memscope.export import site as static_site
from memscope.export import site_pages
from memscope.export.site import StaticSite, write_static
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from tests.conftest import HOSTILE
from tests.export.pages import open_page, pages_of, unpack


@pytest.fixture(scope="module")
def site(tiny_recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> StaticSite:
    return write_static(tiny_recording, tmp_path_factory.mktemp("site") / "tiny")


def rows_of(site: StaticSite) -> list[list[object]]:
    """What the script hands over."""
    rows: list[list[object]] = []
    for path in sorted((site.home.parent / "data").iterdir()):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("memscope.add(") and text.endswith(");\n")
        rows += json.loads(text.removeprefix("memscope.add(").removesuffix(");\n"))
    return rows


@pytest.fixture(scope="module")
def hostile_entry(tiny_recording: Recording) -> int:
    table = tiny_recording.entries(limit=64)
    [entry] = table.loc[table["sentence"].str.contains("<script>").fillna(False).astype(bool), "entry"]
    return int(entry)


def test_every_used_entry_has_a_row_and_a_page(site: StaticSite, tiny_recording: Recording) -> None:
    table = tiny_recording.entries(limit=64)
    used = table[table["count"] > 0]
    rows = rows_of(site)
    assert [row[0] for row in rows] == used["entry"].tolist()
    assert [row[1] for row in rows] == used["count"].tolist()
    assert pages_of(site.home).keys() == set(used["entry"])
    assert (site.entries, site.left_out) == (len(used), 64 - len(used))
    assert f"the other {64 - len(used)} were never selected" in " ".join(site.home.read_text().split())
    assert site.bytes == sum(path.stat().st_size for path in site.home.parent.rglob("*") if path.is_file())


def test_the_row_of_an_entry_names_the_layer_that_uses_it_most(site: StaticSite, tiny_recording: Recording) -> None:
    usage = tiny_recording.usage()
    for entry, _, _, layers, main, *_ in rows_of(site):
        assert main == usage[:, entry].argmax()
        assert layers == (usage[:, entry] > 0).sum()


def test_links_lead_to_pages_that_are_there(site: StaticSite) -> None:
    pages, others = pages_of(site.home), unpack(site.home.parent / "shared.js")["others"]
    for entry, page in pages.items():
        assert {layer[0] for layer in page["layers"]} <= {usage[0] for usage in page["usage"]}, entry
        for layer in page["layers"]:
            assert all(other in pages or str(other) in others for other in layer[7][0])  # known by name without a page
    for path in site.home.parent.glob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"]+)"', path.read_text()):
            assert (path.parent / target).is_file(), (path.name, target)


def test_pages_run_no_script_of_their_own_and_load_nothing_from_elsewhere(site: StaticSite) -> None:
    for path in site.home.parent.glob("*.html"):
        assert "Content-Security-Policy" in path.read_text() and "default-src 'none'" in path.read_text()
        assert not re.search(r'(href|src)="(https?:)?//', path.read_text())
        assert not re.search(r"<[^>]+\s(on\w+|style)=", path.read_text())
    for path in site.home.parent.glob("*.js"):
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text()), path.name


def test_text_that_no_context_shows_is_left_out(tiny_recording: Recording, tmp_path: Path) -> None:
    few = write_static(tiny_recording, tmp_path / "few", limit=1)
    whole = write_static(tiny_recording, tmp_path / "whole")
    kept = [np.count_nonzero(unpack(site.home.parent / "text" / "0000.js")) for site in (few, whole)]
    assert 0 < kept[0] < kept[1]


def test_a_site_of_some_entries_has_these_alone(tiny_recording: Recording, tmp_path: Path) -> None:
    used = tiny_recording.usage_table().sort_values(["count", "entry"], ascending=[False, True])["entry"].tolist()
    few = write_static(tiny_recording, tmp_path / "few", limit=3)
    assert (few.entries, few.left_out) == (3, 61) and len(pages_of(few.home)) == 3
    counts = tiny_recording.usage().sum(0)
    assert min(counts[entry] for entry in pages_of(few.home)) >= max(
        counts[e] for e in used if e not in pages_of(few.home)
    )
    chosen = write_static(tiny_recording, tmp_path / "chosen", entries=used[5:9])
    assert pages_of(chosen.home).keys() == set(used[5:9])
    test_links_lead_to_pages_that_are_there(chosen)
    unused = sorted(set(range(64)) - set(used))
    with pytest.raises(InputError, match="none of these entries was selected"):
        write_static(tiny_recording, tmp_path / "none", entries=unused)
    assert not (tmp_path / "none").exists()


def test_hostile_text_is_escaped_in_pages_and_data(site: StaticSite, hostile_entry: int) -> None:
    written = [path.read_text() for path in site.home.parent.rglob("*") if path.suffix in (".html", ".js")]
    for text in written:
        assert "<script>window" not in text and "<img src=x" not in text
    [row] = [row for row in rows_of(site) if row[0] == hostile_entry]
    assert row[7] == HOSTILE.strip()


def test_json_in_a_script_ends_neither_the_script_nor_a_line() -> None:
    value = ["</script><!--", "a\u2028b\u2029c", "\\u003c", None, 1.5]
    text = static_site._script_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_many_entries_are_split_into_files_most_used_first(
    tiny_recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_site, "_ROWS_PER_FILE", 10)
    site = write_static(tiny_recording, tmp_path / "site")
    names = sorted(path.name for path in (tmp_path / "site" / "data").iterdir())
    assert len(names) == -(-site.entries // 10)
    assert re.findall(r'src="data/([^"]+)"', site.home.read_text()) == names
    counts = [row[1] for row in rows_of(site)]
    assert counts == sorted(counts, reverse=True)


def test_an_earlier_site_is_replaced(tiny_recording: Recording, site: StaticSite, tmp_path: Path) -> None:
    out = shutil.copytree(site.home.parent, tmp_path / "site")
    (out / "pages" / "stale.js").touch()
    write_static(tiny_recording, out)
    assert not (out / "pages" / "stale.js").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_any_other_folder_or_file_is_left_alone(tiny_recording: Recording, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"mine: holds files that are not a site of memscope"):
        write_static(tiny_recording, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(InputError, match="this is a file"):
        write_static(tiny_recording, tmp_path / "mine" / "thesis.tex")


def test_a_site_that_breaks_off_leaves_nothing(
    tiny_recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site_pages, "_card", full)
    with pytest.raises(OSError, match="No space left"):
        write_static(tiny_recording, tmp_path / "site")
    assert list(tmp_path.iterdir()) == []


# --- in Chromium, from disk -------------------------------------------------------------------------------------------


@pytest.fixture
def page(browser, site: StaticSite):
    """A tab on the index, opened from disk, that notes everything that goes wrong."""
    tab = browser.new_context(viewport={"width": 1000, "height": 800}).new_page()
    wrong: list[str] = []
    folder = site.home.parent.as_uri()
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.append(dialog.message))
    tab.on("request", lambda request: None if request.url.startswith(folder) else wrong.append(request.url))
    tab.goto(site.home.as_uri())
    tab.locator("#found").filter(has_text=f"of {site.entries} entries").wait_for()
    yield tab
    assert tab.evaluate("window.hacked") is None
    assert wrong == []
    tab.context.close()


def shown(page) -> list[int]:
    return [int(text) for text in page.locator("#rows td:first-child a").all_inner_texts()]


@pytest.mark.browser
def test_the_list_is_sorted_by_any_column(page, tiny_recording: Recording) -> None:
    table = tiny_recording.entries(limit=64)
    used = table[table["count"] > 0]
    assert shown(page) == used["entry"].tolist()
    page.get_by_role("button", name="Drift").click()
    drift = used.assign(drift=used["drift"].round(5)).sort_values(["drift", "entry"], ascending=[False, True])
    assert shown(page) == drift["entry"].tolist()
    assert page.locator("th[data-sort=drift]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Drift").click()
    assert page.locator("th[data-sort=drift]").get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Entry").click()
    assert shown(page) == sorted(used["entry"])


@pytest.mark.browser
def test_search_finds_what_the_query_layer_finds(page, tiny_recording: Recording) -> None:
    used = set(tiny_recording.usage_table()["entry"])
    for words in ("aston", "Holm PRINTER", "birth", "no such words"):
        page.get_by_role("searchbox").fill(words)
        expected = {int(e) for e in tiny_recording.entries(search=words, limit=64)["entry"]} & used
        assert set(shown(page)) == expected, words
    page.get_by_role("searchbox").fill("17")
    assert 17 in shown(page) or 17 not in used


@pytest.mark.browser
def test_the_address_keeps_search_and_order(page) -> None:
    page.get_by_role("searchbox").fill("aston")
    page.get_by_role("button", name="Entry").click()
    rows, address = shown(page), page.url
    assert address.endswith("#q=aston&sort=entry&order=up")
    page.locator("#rows a").first.click()
    page.get_by_role("heading", name=f"Entry {rows[0]}", exact=True).wait_for()
    page.go_back()
    page.locator("#rows tr").first.wait_for()
    assert (page.url, shown(page)) == (address, rows)
    assert page.get_by_role("searchbox").input_value() == "aston"


@pytest.mark.browser
def test_a_page_shows_what_is_known_of_the_entry(page, site: StaticSite, tiny_recording: Recording) -> None:
    table = tiny_recording.entries(limit=64)
    entry = int(table["entry"][table["sentence"].notna()].iloc[0])
    card, main = tiny_recording.entry(entry), open_page(page, site.home, entry)
    text = main.inner_text()
    assert main.get_by_role("heading", level=1).inner_text() == f"Entry {entry}"
    assert f"{card.drift:.4f}" in text and card.sentence in text and "place of birth" in text
    for row in card.usage.itertuples():
        assert f"{row.count:,}\t{row.share:.3%}" in text.replace("\n", "").replace("\t\t", "\t")
    for row in card.lens.itertuples():
        assert " ".join(map(visible, row.top)) in text and " ".join(map(visible, row.bottom)) in text
    assert " ".join(map(visible, card.nearest["token"])) in text
    others = tiny_recording.neighbours_of([entry])["other"]
    links = main.get_by_role("link").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert {f"page.html#{other}" for other in others} <= set(links)
    d = tiny_recording.info.rows * tiny_recording.info.selected
    assert f"D = {d:,}" in text


@pytest.mark.browser
@pytest.mark.parametrize("text", ["", "阿波罗是太阳神。他的妹妹是月亮女神 🏛️ na\u0308ive 👩‍👧!"])
def test_contexts_are_those_of_the_recording(
    text: str, browser, site: StaticSite, tiny_recording: Recording, tiny_run: LoadedRun, tmp_path: Path
) -> None:
    """The script cuts them out of the text; so windows, ends of documents, characters of several tokens and marked
    tokens are compared one by one."""
    compared, tab = 0, browser.new_page()
    if text:
        write_text(tmp_path / "text.jsonl", json.dumps({"text": text * 8}) + "\n" + json.dumps({"text": text}) + "\n")
        record(OwnRun(tiny_run), tmp_path / "text.jsonl", tmp_path / "recording", RecordOptions())
        tiny_recording = Recording(tmp_path / "recording")
        site = write_static(tiny_recording, tmp_path / "site")
    for entry in sorted(pages_of(site.home))[:6]:
        found = tiny_recording.contexts_of([entry], site_pages.BEFORE, site_pages.AFTER)
        drawn = open_page(tab, site.home, entry).locator(".context").evaluate_all(_TEXTS)
        said = {(row.before + row.token + row.after, row.token.lstrip(" ") or row.token) for row in found.itertuples()}
        said = {(" ".join(flat(text).split()), visible(token)) for text, token in said}
        for text, token in drawn:
            near = [whole for whole, marked in said if marked == token and " ".join(text.split()) in whole]
            assert min(len(whole) - len(text) for whole in near) < 9, (entry, text)  # less an emoji that is cut
        top = found[found["kind"] == "top"].groupby("layer")["row"].size().clip(upper=site_pages.TOP_CONTEXTS).sum()
        assert len(drawn) >= top
        compared += len(drawn)
    tab.close()
    assert compared > 50


_TEXTS = """all => all.map(context => {
  const [said, mark] = [context.querySelector("span"), context.querySelector("mark")];
  const raw = mark.textContent.replace(/^␣+|␣+$/g, spaces => " ".repeat(spaces.length));
  const parts = [...context.childNodes].filter(node => node !== said);
  const text = parts.map(node => node === mark ? raw : node.textContent).join("");
  return [text.replace(/^…|…$/g, ""), mark.textContent];
})"""


def flat(text: str) -> str:
    """A context as pages show it: on one line, invisible characters written out."""
    return printable(text.replace("\n", "↵").replace("\t", " "))


@pytest.mark.browser
def test_hostile_text_is_text_in_the_list_and_on_its_page(page, hostile_entry: int) -> None:
    page.get_by_role("searchbox").fill("<script>window.hacked onerror")
    assert shown(page) == [hostile_entry]
    assert "<script>window.hacked = true</script>" in page.locator("#rows").inner_text()
    page.locator("#rows a").click()
    page.get_by_role("heading", name=f"Entry {hostile_entry}", exact=True).wait_for()
    assert "<img src=x onerror='window.hacked = true'>" in page.locator(".lead").inner_text()
    assert page.locator("main img, main script").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_of_the_window(page, site: StaticSite, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for entry in (None, *sorted(pages_of(site.home))[:3]):
        page.goto(site.home.as_uri() if entry is None else f"{(site.home.parent / 'page.html').as_uri()}#{entry}")
        page.get_by_role("heading", level=1).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, entry


@pytest.mark.browser
def test_pages_lead_to_one_another_and_back(page, site: StaticSite) -> None:
    first, second = shown(page)[:2]
    page.locator("#rows a").first.click()
    page.get_by_role("heading", name=f"Entry {first}", exact=True).wait_for()
    assert page.title() == f"Entry {first}"
    page.get_by_role("link", name="less used").click()
    page.get_by_role("heading", name=f"Entry {second}", exact=True).wait_for()
    page.go_back()
    page.get_by_role("heading", name=f"Entry {first}", exact=True).wait_for()
    page.goto(f"{(site.home.parent / 'page.html').as_uri()}#200")
    page.get_by_role("heading", name="There is no page of this number").wait_for()


@pytest.mark.browser
def test_long_lists_are_shown_in_pages(page) -> None:
    rows = [[100 + n, 1000 - n, 0.5, 1, 0, None, f"sentence {n}", ""] for n in range(250)]
    page.get_by_role("searchbox").fill("sentence")
    page.evaluate("rows => { memscope.expected += rows.length; memscope.add(rows) }", rows)
    page.locator("#found").filter(has_text="1 to 100 of 250 entries").wait_for()
    page.get_by_role("button", name="Next page").click()
    page.get_by_role("button", name="Next page").click()
    assert page.locator("#found").inner_text() == "201 to 250 of 250 entries"
    assert page.get_by_role("button", name="Next page").is_disabled()
    assert page.url.endswith("#q=sentence&page=3")
