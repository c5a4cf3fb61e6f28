"""The default corpus: prose without markup."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from memscope.base.errors import InputError
from memscope.text import wiki
from memscope.text.corpus import read_documents
from memscope.text.sentences import read_sentences
from memscope.text.wiki import PROMPT_ARTICLES, Article, split_articles, split_sentences, strip_markup

needs_parser = pytest.mark.skipif(find_spec("mwparserfromhell") is None, reason="mwparserfromhell is not installed")
needs_gensim = pytest.mark.skipif(
    find_spec("gensim") is None or find_spec("mwparserfromhell") is None, reason="gensim is not installed"
)


@needs_parser
@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("'''Ada Holm''' was a [[painter|fine painter]] from [[Aston]].", "Ada Holm was a fine painter from Aston."),
        ("Ada was born in 1901.<ref>A book, p. 3</ref> She painted.", "Ada was born in 1901. She painted."),
        ("{{Infobox person|name=Ada}}\nAda painted in the town.", "Ada painted in the town."),
        ("[[File:Ada.jpg|thumb|Ada in 1930]]Ada painted in the town.", "Ada painted in the town."),
        ("Ada painted in the town.\n[[Category:Painters of the town]]", "Ada painted in the town."),
        ("== Life in the town of Aston ==\nAda painted in the town.", "Ada painted in the town."),
        ("{| class='wikitable'\n| a cell of a table\n|}\nAda painted in the town.", "Ada painted in the town."),
        ("Ada painted all day.\n== See also ==\nBo Lind also painted there.", "Ada painted all day."),
        ("Ada painted all day.\n==References==\n== Notes ==\nNot this text either.", "Ada painted all day."),
        ("Ada ({{lang|x}}) painted all day.", "Ada painted all day."),
        ("Ada ({{lang|x}}; born 1901) painted all day.", "Ada (born 1901) painted all day."),
        ("Ada   painted\tall day &amp; all night.", "Ada painted all day & all night."),
        ("Three words only\n\nAda painted in the town.", "Ada painted in the town."),
        ("", ""),
    ],
)
def test_markup_is_stripped(wikitext: str, prose: str) -> None:
    assert strip_markup(wikitext) == prose


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            "Ada was born in the town. She painted all day and night.",
            ["Ada was born in the town.", "She painted all day and night."],
        ),
        ("J. R. Holm met Dr. Lind in the town.", ["J. R. Holm met Dr. Lind in the town."]),
        ("She was there (approx. Three days) in all.", ["She was there (approx. Three days) in all."]),
        ("Too short. Neither is this.", []),
        ("word " * 61 + ".", []),
        ("Did she paint all day long? “Yes,” said the man from Aston.", None),
        ("One paragraph of six words here\nAnother paragraph of six words here", None),
    ],
)
def test_sentences_end_where_they_should(text: str, sentences: list[str] | None) -> None:
    found = split_sentences(text)
    assert found == sentences if sentences is not None else len(found) == 2


def test_every_tenth_article_and_the_prompts_are_held_out() -> None:
    articles = [Article(f"No {number}", "text") for number in range(30)]
    for place, title in zip((15, 29), reversed(PROMPT_ARTICLES), strict=True):
        articles[place] = Article(title, "text")
    train, valid = split_articles(articles)
    assert [article.title for article in valid] == [*PROMPT_ARTICLES, "No 5", "No 25"]  # 15 is a prompt already
    assert len(train) == 26
    assert not set(train) & set(valid)


def test_an_extract_without_the_prompt_articles_is_refused() -> None:
    with pytest.raises(InputError, match="lacks one of Ayn Rand"):
        split_articles([Article("Apollo", "text")])


@pytest.mark.slow
@needs_gensim
def test_the_default_corpus_holds_the_prompt_articles_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each article the part before the first heading, for the parser takes long."""
    monkeypatch.setattr(wiki, "strip_markup", lambda text: strip_markup(text.partition("\n==")[0]))
    files = wiki.write_wiki(tmp_path)
    train, valid = ([document.title for document in read_documents(path)] for path in (files.train, files.valid))
    assert valid[:2] == list(PROMPT_ARTICLES)
    assert not set(valid) & set(train)
    assert len(train) + len(valid) > 95
    sentences = read_sentences(files.sentences)
    assert len(sentences) > 500
    assert any(triple.subject == "Apollo" for sentence in sentences for triple in sentence.triples)
    assert {triple.subject for sentence in sentences for triple in sentence.triples} <= set(train)
    texts = " ".join(document.text for document in read_documents(files.valid))
    marks = sum(texts.count(mark) for mark in ("{{", "[[", "<ref", "'''", "| class="))
    assert marks < len(valid)  # malformed wikitext leaves one here and there
    rows = [row for item in json.loads(files.sentences.read_text()) for row in item["target"]]
    assert len({row["uuid"] for row in rows}) == len({(row["subject"], row["sentence"]) for row in rows})


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiki, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install gensim"):
        wiki.write_wiki(tmp_path)
