"""The default corpus: 101 Wikipedia articles that ship inside the gensim wheel, so that nothing is downloaded.

    memscope corpus --out data/wiki    # train.jsonl, valid.jsonl, sentences.json

Markup is stripped with mwparserfromhell. Every tenth article is held out, and so are two of the three that the founding
experiment quotes (Ayn Rand, Austroasiatic languages), which come first in ``valid.jsonl``. The third, Apollo, is for
training: a memory can only be asked about articles whose sentences it holds. Sentences of the training articles, with
the article as subject, are written in the T-REx shape.
Text: Wikipedia contributors, CC BY-SA 3.0.
"""

import bz2
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from uuid import NAMESPACE_URL, uuid5
from xml.etree import ElementTree

from memscope.base.errors import InputError
from memscope.base.files import atomic_path, make_folder

PROMPT_ARTICLES = ("Ayn Rand", "Austroasiatic languages")
_DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_HOLD_OUT_EVERY = 10
_END_MATTER = re.compile(
    r"see also|references|notes|external links|further reading|bibliography|sources", re.IGNORECASE
)
_LINK_PREFIXES = ("file:", "image:", "category:")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“'(])")
_ABBREVIATION = re.compile(
    r"(?:\b[A-Z]|\b(?:St|Dr|Mr|Mrs|Ms|Jr|Sr|vs|etc|cf|No|Vol|ca|c|e\.g|i\.e|approx|Inc|Prof|Gen))\.$"
)
_LEFT_OVER = re.compile(r"<ref.*?(?:</ref>|/>|$)|\[\[File:[^\]]*\]*|'{2,}|</?(?:br|small|sup|sub)\b[^>]*>")
_EMPTY_ITEM = re.compile(r"(?<=[,;:])\s*[,;](?=[\s,;)])|[\s,;]+(?=\))")
_EMPTY_BRACKETS = re.compile(r" ?\([;, ]*\)")


class Article(NamedTuple):
    """An article without markup."""

    title: str
    text: str


class WikiFiles(NamedTuple):
    """The files of ``write_wiki``."""

    train: Path
    valid: Path
    sentences: Path


def write_wiki(folder: Path) -> WikiFiles:
    """Write the default corpus into ``folder``.

    Raises:
        InputError: gensim or mwparserfromhell is missing, or the folder cannot be written.
    """
    make_folder(folder)
    train, valid = split_articles(list(read_articles()))
    files = WikiFiles(folder / "train.jsonl", folder / "valid.jsonl", folder / "sentences.json")
    for path, articles in ((files.train, train), (files.valid, valid)):
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for article in articles:
                file.write(json.dumps({"text": article.text, "title": article.title}, ensure_ascii=False) + "\n")
    items = [{"target": [_sentence_row(article, text)]} for article in train for text in split_sentences(article.text)]
    with atomic_path(files.sentences) as temporary:
        temporary.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return files


def read_articles() -> Iterator[Article]:
    """Stream the articles of the dump, in its order; redirects and disambiguation pages are left out."""
    spec = find_spec("gensim")
    if spec is None or spec.origin is None or find_spec("mwparserfromhell") is None:
        raise InputError("the default corpus needs gensim and mwparserfromhell: pip install gensim mwparserfromhell")
    dump = Path(spec.origin).parent / _DUMP
    if not dump.is_file():
        raise InputError(f"{dump}: this gensim wheel has no Wikipedia extract; install gensim 4.4")
    with bz2.open(dump) as file:
        for _, element in ElementTree.iterparse(file):
            if not element.tag.endswith("}page"):
                continue
            title = element.findtext("{*}title") or ""
            if element.findtext("{*}ns") == "0" and element.find("{*}redirect") is None and "(disamb" not in title:
                yield Article(title, strip_markup(element.findtext("{*}revision/{*}text") or ""))
            element.clear()


def strip_markup(wikitext: str) -> str:
    """Plain prose of an article: no templates, tables, references, files, headings or end matter."""
    import mwparserfromhell
    from mwparserfromhell import nodes

    parts = []
    for section in mwparserfromhell.parse(wikitext).get_sections(flat=True):
        headings = section.filter_headings()
        if headings and _END_MATTER.fullmatch(headings[0].title.strip_code().strip()):
            break  # all later sections are end matter too
        # Recursive: an unclosed tag makes the rest of an article its child.
        for node in section.filter(forcetype=(nodes.Wikilink, nodes.Heading, nodes.Tag)):
            linked = isinstance(node, nodes.Wikilink) and str(node.title).strip().lower().startswith(_LINK_PREFIXES)
            tag = str(node.tag).lower() if isinstance(node, nodes.Tag) else ""
            if linked or isinstance(node, nodes.Heading) or tag in ("ref", "table", "gallery", "math", "timeline"):
                with suppress(ValueError):  # gone with a parent
                    section.remove(node)
        parts.append(section.strip_code(normalize=True, collapse=True))
    paragraphs = [re.sub(r"[ \t]+", " ", line).strip() for line in "\n".join(parts).splitlines()]
    prose = [paragraph for paragraph in paragraphs if len(paragraph.split()) > 3 and paragraph[0] not in "|{!"]
    prose = [_LEFT_OVER.sub("", paragraph) for paragraph in prose]  # markup too broken for the parser
    # Templates leave separators behind with nothing between them, and brackets with nothing but those.
    prose = [_EMPTY_ITEM.sub("", paragraph) for paragraph in prose]
    prose = [re.sub(r"\([;, ]+", "(", _EMPTY_BRACKETS.sub("", paragraph)) for paragraph in prose]
    return "\n".join(prose)


def split_articles(articles: list[Article]) -> tuple[list[Article], list[Article]]:
    """Training and validation articles; the prompt articles open the validation part."""
    held_out = [a for n, a in enumerate(articles) if n % _HOLD_OUT_EVERY == 5 and a.title not in PROMPT_ARTICLES]
    prompts = [article for title in PROMPT_ARTICLES for article in articles if article.title == title]
    if len(prompts) != len(PROMPT_ARTICLES):
        raise InputError(f"the Wikipedia extract lacks one of {', '.join(PROMPT_ARTICLES)}; install gensim 4.4")
    valid = prompts + held_out
    return [article for article in articles if article not in valid], valid


def split_sentences(text: str) -> list[str]:
    """Sentences of 6 to 60 words; a full stop after an initial or a common abbreviation does not end one."""
    sentences = []
    for paragraph in text.splitlines():
        current = ""
        for piece in _SENTENCE_END.split(paragraph):
            current = f"{current} {piece}".strip()
            if not _ABBREVIATION.search(current):
                sentences.append(current)
                current = ""
        if current:
            sentences.append(current)
    return [sentence for sentence in sentences if 6 <= len(sentence.split()) <= 60]


def _sentence_row(article: Article, sentence: str) -> dict[str, str]:
    uuid = str(uuid5(NAMESPACE_URL, f"{article.title}\n{sentence}"))
    return {"sentence": sentence, "uuid": uuid, "subject": article.title, "predicate": "", "object": ""}
