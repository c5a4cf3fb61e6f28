"""Files from outside are read as what they are, whatever they are called, or refused by name."""

import bz2
import gzip
import json
import lzma
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from memscope.base.errors import InputError
from memscope.text import inputs
from memscope.text.corpus import read_documents
from memscope.text.fact_files import Fact, read_facts
from memscope.text.inputs import Skipped, read_rows
from memscope.text.sentences import Sentence, Triple, read_sentences

ROWS = [{"text": f"Document {number}, “größer” 漢字", "title": f"No {number}"} for number in range(7)]
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstandard": lambda content: zstandard.ZstdCompressor(write_checksum=True).compress(content),
}
LONG = "9" * 5000


def lines(rows: list[Any], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


LAYOUTS: dict[str, Callable[[list[Any]], bytes]] = {
    "lines": lines,
    "lines with CRLF": lambda rows: lines(rows, "\r\n"),
    "lines without an end": lambda rows: lines(rows)[:-1],
    "a mark of byte order": lambda rows: b"\xef\xbb\xbf" + lines(rows),
    "two files with marks": lambda rows: b"\xef\xbb\xbf" + lines(rows[:3]) + b"\xef\xbb\xbf" + lines(rows[3:]),
    "blank lines": lambda rows: b"\n \n" + lines(rows, "\n\n") + b"\t\n",
    "a list": lambda rows: json.dumps(rows).encode(),
    "a list over lines": lambda rows: (
        b"\xef\xbb\xbf\n" + json.dumps(rows, indent=1, ensure_ascii=False).encode() + b"\n"
    ),
    "a list with CRLF": lambda rows: json.dumps(rows, indent=2).replace("\n", "\r\n").encode(),
}


def value(raw: Any, where: str) -> Any:
    if raw == "bad":
        raise InputError(f"{where}: of no use")
    return raw


def read(path: Path, **options: Any) -> list[Any]:
    return list(read_rows(path, "corpus", value, **options))


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_the_same_in_every_layout(tmp_path: Path, layout: str, packed: str) -> None:
    for name in ("corpus", "CORPUS.JSONL.GZ", "corpus.txt", "corpus.parquet"):
        (tmp_path / name).write_bytes(PACKED[packed](LAYOUTS[layout](ROWS)))
        assert read(tmp_path / name) == ROWS


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "corpus.jsonl")
    assert read(tmp_path / "corpus.jsonl") == ROWS
    assert [document.text for document in read_documents(tmp_path / "corpus.jsonl")] == [row["text"] for row in ROWS]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_a_list_is_read_in_chunks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    chance = random.Random(chunk)
    items = [1, 12345, -0.5, 'a\\"]', [], {"a": [1, {"b": "}],"}]}, None, True, "漢字" * 9, [[["x"]]], 3e5, 10**40]
    chance.shuffle(items)
    text = "".join(
        part + chance.choice(["", " ", "\n", "\r\n\t"]) for part in ["[", ",".join(map(json.dumps, items)), "]"]
    )
    (tmp_path / "list.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(inputs, "_CHUNK", chunk)
    assert read(tmp_path / "list.json") == items


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04....", "this is a zip archive or a spreadsheet"),
        (b"ARROW1\0\0", "this is an Arrow file"),
        ('{"text": "a"}'.encode("utf-16"), "this is UTF-16 text"),
        (b"%PDF-1.7", "this is a PDF"),
        (b"\x80\x04\x95abc", "a pickle, which is never opened"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b'<?xml version="1.0"?>', "this is XML"),
        (b"<!doctype html><p>", "this is a web page"),
        (b"id,text,title\n1,hello,a\n", r"comma- or tab-separated values \(id,text,title\)"),
        (b"\xef\xbb\xbfsubject\tpredicate\tobject\r\na\tb\tc\r\n", "comma- or tab-separated"),
        (b'"id";"text"\n1;"hello"\n', "comma- or tab-separated"),
        (b"text\nhello\n", "comma- or tab-separated"),
        (gzip.compress(b"id,text\n1,a\n", mtime=0), "comma- or tab-separated"),  # the time would be in the test's name
        (gzip.compress(gzip.compress(b'{"text": "a"}', mtime=0), mtime=0), "an archive inside of an archive"),
        (b"\0\1\2\3" * 9, "a binary file"),
        (b"PAR1 and then nothing", "cannot be read as Parquet .* truncated"),
        (b'{"text": "a"}\n{"text": "cut o', ":2: not a JSON object .* truncated"),
        (b'{"text": "a"}\n{"text": "caf\xc3', ":2: the last line breaks off; is the file truncated"),
        (b'[{"text": "a"}, {"te', ":1: not valid JSON .* truncated"),
        (b'[{"text": "a"},\n{"text": "b"}', ":2: not valid JSON .*; is the file truncated"),
        (b'[{"text": "a"}\n{"text": "b"}]', r":2: not valid JSON \(Expecting ','"),
        (b'[{"text": "a"}] []', "there is more after the end of the list"),
        (b'[{"text": "a"}, ]', ":1: not valid JSON"),
        (b'[{"text": "caf\xe9"}]', "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{\n "text": "a"\n}\n', ":1: a JSON object over several lines"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_what_is_something_else_is_refused_by_name(tmp_path: Path, content: bytes, message: str, plain: bool) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"corpus\.jsonl.*{message}"):
        read(path, plain=plain)


@pytest.mark.parametrize("packed", [name for name in PACKED if name != "plain"])
@pytest.mark.parametrize("layout", ["lines", "a list"])
def test_a_damaged_archive_is_refused(tmp_path: Path, layout: str, packed: str) -> None:
    whole = PACKED[packed](LAYOUTS[layout]([{"text": str(random.Random(n).random())} for n in range(2000)]))
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:20], whole[:300] + b"\xff" * 30 + whole[330:]):
        (tmp_path / "corpus").write_bytes(content)
        with pytest.raises(InputError, match=r"corpus(:| cannot).*"):
            read(tmp_path / "corpus")


@pytest.mark.parametrize("bad", [b"[1, 2", b"plain words", b'{"text": "caf\xe9"}', b"\x00\x01", b"[" * 9999, b'"bad"'])
@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_bad_line_is_skipped_counted_and_said(
    tmp_path: Path, bad: bytes, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    good = lines(ROWS).splitlines(keepends=True)
    (tmp_path / "corpus").write_bytes(b"{}\n" + b"".join([*good[:at], bad + b"\n", *good[at:]]))
    assert read(tmp_path / "corpus") == [{}, *ROWS]
    said = capsys.readouterr().err
    assert said.startswith("skipped 1 of 9 rows that cannot be used; the first: ")
    assert f"corpus:{at + 2}: " in said and said.count("\n") == 1
    noted = Skipped()
    assert len(read(tmp_path / "corpus", skipped=noted)) == 8
    assert (noted.rows, noted.count, capsys.readouterr().err) == (9, 1, "")


def test_a_file_of_which_half_is_bad_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    path.write_bytes(lines([1, "bad", "bad", 2]))
    with pytest.raises(InputError, match=r"corpus:2: of no use \(2 of 4 rows cannot be used\)"):
        read(path)
    assert read(path, any_share=True) == [1, 2]
    path.write_bytes(lines(["bad"]))
    with pytest.raises(InputError, match=r"corpus:1: of no use$"):
        read(path, any_share=True)
    path.write_bytes(lines(["bad"] * 100) + b'{"breaks off')
    with pytest.raises(InputError, match=r"corpus:1: of no use, and so are the 99 rows after it"):
        read(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_number_too_long_for_python_is_read(tmp_path: Path, layout: str) -> None:
    content = LAYOUTS[layout]([{"text": "one", "id": "LONG"}, {"text": "two"}, {"text": "three"}, {"text": "four"}])
    (tmp_path / "corpus").write_bytes(content.replace(b'"LONG"', LONG.encode()))
    assert [document.text for document in read_documents(tmp_path / "corpus")] == ["one", "two", "three", "four"]


def test_a_line_has_a_limit_that_its_error_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LONGEST", 1 << 20)
    path = tmp_path / "corpus"
    path.write_bytes(lines(["short", "x" * ((1 << 20) - 3)]))
    assert len(read(path)) == 2  # exactly as long as may be
    path.write_bytes(lines(["short", "x" * (1 << 20)]))
    with pytest.raises(InputError, match=r"corpus:2: this line is longer than 1 MB"):
        read(path)
    path.write_bytes(json.dumps(["short", "x" * (3 << 20)]).encode())
    with pytest.raises(InputError, match="item 1 is longer than 1 MB"):
        read(path)


@pytest.mark.parametrize("start", [b'{"text": "', b'[{"text": "', b"x"])
def test_a_line_that_unpacks_to_gigabytes_takes_bounded_memory(tmp_path: Path, start: bytes) -> None:
    bomb = tmp_path / "bomb.jsonl.zst"
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    with bomb.open("wb") as file:
        file.write(packer.compress(start))
        for _ in range(1 << 9):
            file.write(packer.compress(bytes(48) * (1 << 17)))  # 3 GB, a few hundred kilobytes on disk
        file.write(packer.flush())
    program = (
        "import sys; from pathlib import Path; from memscope.text.sentences import read_sentences\n"
        "try: read_sentences(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"  # of this program alone
    )
    limit = 3 << 30
    done = subprocess.run(
        [sys.executable, "-c", program, str(bomb)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    said, peak = done.stdout.strip().rsplit("\n", 1)
    assert "longer than 64 MB" in said or "binary file" in said
    assert int(peak) < 1 << 19  # kilobytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sentences_are_read_in_every_layout(tmp_path: Path, layout: str) -> None:
    rows = [{"sentence": f"Sentence {n} states a thing .", "uuid": f"u{n}", "predicate": "p"} for n in range(5)]
    expected = [Sentence(row["sentence"], (Triple(row["uuid"], "", "p", ""),)) for row in rows]
    for name, items in (("items.jsonl", [{"target": [row]} for row in rows]), ("UP.JSON", rows)):
        (tmp_path / name).write_bytes(LAYOUTS[layout](items))
        assert read_sentences(tmp_path / name) == expected
    (tmp_path / "texts").write_bytes(LAYOUTS["a list"]([row["sentence"] for row in rows]))
    assert [sentence.text for sentence in read_sentences(tmp_path / "texts")] == [row["sentence"] for row in rows]


@pytest.mark.parametrize(
    "text",
    [
        "[1] A note .",
        "[sic] said he .",
        '"Quoted," she said .',
        "Hello, world",
        "Subject, object and text",
        "1",
    ],
)
def test_plain_sentences_that_begin_oddly_stay_sentences(tmp_path: Path, text: str) -> None:
    (tmp_path / "plain").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\nAnother one .\r\n")
    assert [sentence.text for sentence in read_sentences(tmp_path / "plain")] == [text, "Another one ."]


def test_the_dump_of_t_rex_gives_the_sentences_that_state_something(tmp_path: Path) -> None:
    text = "Ada Holm was born in Aston. It rains. She died in Berrow."
    thing = {"boundaries": [0, 8], "annotator": "x"}
    triples = [
        {
            "sentence_id": number,
            "subject": thing | {"uri": "http://www.wikidata.org/entity/Q1", "surfaceform": subject},
            "predicate": {"uri": f"http://www.wikidata.org/prop/direct/{relation}", "surfaceform": None},
            "object": thing | {"uri": "http://www.wikidata.org/entity/Q2", "surfaceform": object_},
        }
        for number, subject, relation, object_ in ((0, "Ada Holm", "P19", "Aston"), (2, "She", "P20", "Berrow"))
    ]
    document = {"docid": "Q1", "title": "Ada Holm", "text": text, "sentences_boundaries": [[0, 27], [28, 37], [38, 57]]}
    (tmp_path / "dump.json").write_text(json.dumps([document | {"triples": triples}] * 2))
    assert read_sentences(tmp_path / "dump.json") == [
        Sentence("Ada Holm was born in Aston.", (Triple("", "Ada Holm", "P19", "Aston"),)),
        Sentence("She died in Berrow.", (Triple("", "She", "P20", "Berrow"),)),
    ]
    assert [one.title for one in read_documents(tmp_path / "dump.json")] == ["Ada Holm"] * 2
    (tmp_path / "dump.json").write_text(json.dumps([document | {"triples": [{"sentence_id": 7}]}]))
    with pytest.raises(InputError, match="item 0: not a document as T-REx has them"):
        read_sentences(tmp_path / "dump.json")
    with pytest.raises(InputError, match="item 0: sentences of T-REx, not facts"):
        read_facts(tmp_path / "dump.json")


def test_a_corpus_is_no_file_of_sentences(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(lines(ROWS))
    with pytest.raises(InputError, match=r"corpus\.jsonl:1: a document of a corpus"):
        read_sentences(tmp_path / "corpus.jsonl")
    with pytest.raises(InputError, match='a fact needs a text "subject"'):
        read_facts(tmp_path / "corpus.jsonl")


OWN = {"uuid": "u", "subject": "Ada", "predicate": "born in", "object": "Aston", "template": "[X] was born in [Y] ."}
LAMA = {"uuid": "u", "sub_label": "Ada", "obj_label": "Aston", "predicate_id": "P19", "obj_uri": "Q2", "sub_uri": "Q1"}
COUNTERFACT = {
    "case_id": 3,
    "pararel_idx": 7,
    "requested_rewrite": {
        "prompt": "{} was born in",
        "relation_id": "P19",
        "subject": "Ada",
        "target_new": {"str": "Berrow", "id": "Q3"},
        "target_true": {"str": "Aston", "id": "Q2"},
    },
    "paraphrase_prompts": [],
}
FLAT = {"prompt": "Ada was born in", "subject": "Ada", "target_true": " Aston", "target_false": " Berrow"}
POPQA = {"id": 5, "subj": "Ada", "prop": "place of birth", "obj": "Aston", "question": "In what city was Ada born?"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (OWN, Fact("u", "Ada", "born in", "Aston", "[X] was born in [Y] .")),
        (
            LAMA | {"label": "place of birth", "template": "[X] was born in [Y] .", "masked_sentence": "in [MASK]"},
            Fact("u", "Ada", "place of birth", "Aston", "[X] was born in [Y] .", ("in [MASK]",)),
        ),
        (COUNTERFACT, Fact("counterfact-3", "Ada", "P19", "Aston", "[X] was born in [Y]")),
        (FLAT | {"relation_id": "P19"}, Fact("", "Ada", "P19", "Aston", "[X] was born in [Y]")),
        (POPQA, Fact("popqa-5", "Ada", "place of birth", "Aston", "Q: In what city was [X] born? A: [Y]")),
    ],
    ids=["memscope", "LAMA", "CounterFact", "CounterFact, flat", "PopQA"],
)
@pytest.mark.parametrize("layout", ["lines", "a list", "Parquet"])
def test_facts_are_read_as_they_are_published(tmp_path: Path, row: Any, expected: Fact, layout: str) -> None:
    path = tmp_path / "facts"
    if layout == "Parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_bytes(LAYOUTS[layout]([row]))
    assert read_facts(path) == [expected]
    assert expected.question.endswith(("born in", "A:"))


def test_lama_takes_its_templates_from_the_file_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "TREx"
    folder.mkdir(parents=True)
    evidence = [{"sub_surface": "Ada", "obj_surface": "Aston", "masked_sentence": f"{n} in [MASK]"} for n in range(2)]
    (folder / "P19.jsonl").write_bytes(lines([LAMA | {"evidences": evidence[:1]}, LAMA | {"evidences": evidence[1:]}]))
    with pytest.raises(InputError, match=r'needs a text "template"; LAMA\'s templates are in relations\.jsonl'):
        read_facts(folder / "P19.jsonl")
    relation = {"relation": "P19", "template": "[X] was born in [Y] .", "label": "place of birth"}
    (tmp_path / "data" / "relations.jsonl").write_bytes(lines([relation]))
    [fact] = read_facts(folder / "P19.jsonl")
    assert fact == Fact("u", "Ada", "place of birth", "Aston", "[X] was born in [Y] .", ("0 in [MASK]", "1 in [MASK]"))


@pytest.mark.parametrize(
    "bad",
    [
        OWN | {"template": "[Y] is the birthplace of [X] ."},
        OWN | {"object": " "},
        OWN | {"evidence": 3},
        POPQA | {"question": "Where was she born?"},
        COUNTERFACT | {"requested_rewrite": {"prompt": "{} was"}},
        {"target": []},
        [1],
    ],
)
def test_a_row_that_is_no_fact_is_skipped_and_said(
    tmp_path: Path, bad: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "facts").write_bytes(lines([OWN, bad, bad]))
    assert [fact.subject for fact in read_facts(tmp_path / "facts")] == ["Ada"]
    assert "skipped 2 of 3 rows that cannot be used; the first: " in capsys.readouterr().err
