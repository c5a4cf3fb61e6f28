"""JSON lines to packed tokens, training order and document windows."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zstandard

from memscope.base.errors import InputError
from memscope.base.files import sha256_file, write_json
from memscope.base.parquet import write_table
from memscope.text import corpus as corpus_module
from memscope.text.corpus import (
    PackedCorpus,
    TrainingOrder,
    document_windows,
    pack_corpus,
    read_documents,
    window_batch,
)
from memscope.text.tokenizer import Tokenizer
from tests.conftest import make_sentences

DOCUMENTS = [{"text": " ".join(make_sentences(9, seed)), "title": f"No {seed}"} for seed in range(400)]
LINES = "".join(json.dumps(document) + "\n" for document in DOCUMENTS).encode()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([document["text"] for document in DOCUMENTS], 300)


def make_corpus(lengths: list[int], width: type = np.uint16) -> PackedCorpus:
    """Documents whose tokens count up: 0 1 2 ... through all of them."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return PackedCorpus(np.arange(starts[-1], dtype=width), starts, [""] * len(lengths), "corpus.jsonl", "")


def compress(content: bytes, suffix: str) -> bytes:
    match suffix:
        case ".gz":
            return gzip.compress(content)
        case ".zst":
            return zstandard.ZstdCompressor(write_checksum=True).compress(content)  # as the zstd command does
    return content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compressed_and_plain_corpora_give_the_same_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(compress(LINES, suffix))
    assert [document._asdict() for document in read_documents(path)] == [{**one, "group": ""} for one in DOCUMENTS]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_archives_of_several_frames_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(compress(LINES[:1000], suffix) + compress(LINES[1000:], suffix))
    assert len(list(read_documents(path))) == len(DOCUMENTS)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("cut", [1, 5, 0.5])
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str, cut: float) -> None:
    path = tmp_path / f"corpus.jsonl{suffix}"
    content = compress(LINES, suffix)
    path.write_bytes(content[: int(len(content) * cut) if cut < 1 else -int(cut)])
    with pytest.raises(InputError, match=r"corpus\.jsonl.*truncated"):
        list(read_documents(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus.jsonl{suffix}"
    for start in (2, 30, 200, 1000):
        content = bytearray(compress(LINES, suffix))
        content[start : start + 8] = b"\xff" * 8
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"corpus\.jsonl"):
            list(read_documents(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"title": "no text"}', 'expected an object with a string "text", not title'),
        (b'{"text": 5}', 'expected an object with a string "text"'),
        (b'["text"]', "expected an object"),
        (b'"text"', "expected an object"),
        (b'{"text": "cut o', "not a JSON object"),
        (b"plain words", "not a JSON object"),
        (b'{"text": "caf\xe9"}', "not UTF-8 text"),
        (b"\x00\x01\x02\xff", "not UTF-8 text"),
        (b"[" * 100_000, "not a JSON object"),
    ],
)
def test_a_wrong_line_is_skipped_and_named_by_its_number(
    tmp_path: Path, tokenizer: Tokenizer, line: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    for _ in range(2):  # packed, and opened again
        assert pack_corpus(path, tokenizer, tmp_path / "cache").titles == ["", ""]
        said = capsys.readouterr().err
        assert said.startswith("skipped 1 of 3 rows that cannot be used; the first: ")
        assert f"{path}:3: {message}" in said and said.count("\n") == 1
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"corpus\.jsonl:3: .*{message}.*1 of 2 rows"):
        pack_corpus(path, tokenizer, tmp_path / "cache")


def test_long_documents_are_tokenized_a_few_at_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(LINES)
    with pytest.MonkeyPatch.context() as patch:
        whole = pack_corpus(path, tokenizer, tmp_path / "one")
        patch.setattr(corpus_module, "_ENCODE_CHARACTERS", 1)
        alone = pack_corpus(path, tokenizer, tmp_path / "other")
    assert alone.tokens.tolist() == whole.tokens.tolist() and alone.titles == whole.titles


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": "  "}\n'])
def test_a_corpus_without_text_is_refused_and_not_cached(tmp_path: Path, tokenizer: Tokenizer, content: bytes) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no document with text"):
        pack_corpus(path, tokenizer, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("key", ["text", "title", "group"])
def test_half_a_surrogate_pair_is_no_traceback(tmp_path: Path, tokenizer: Tokenizer, key: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"text": "words", "title": "words"} | {key: "half an emoji: \ud83d"}))
    try:
        assert len(pack_corpus(path, tokenizer, tmp_path / "cache").titles) == 1
    except InputError as error:
        assert "corpus.jsonl:1" in str(error)


def test_a_missing_corpus_and_a_folder_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(InputError, match="no such corpus file"):
            pack_corpus(path, tokenizer, tmp_path / "cache")


def test_every_document_is_packed_between_bos_and_eos(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(LINES)
    packed = pack_corpus(path, tokenizer, tmp_path / "cache")
    assert packed.titles == [document["title"] for document in DOCUMENTS]
    assert packed.starts[-1] == len(packed.tokens)
    for start, stop, document in zip(packed.starts[:-1], packed.starts[1:], DOCUMENTS, strict=True):
        tokens = packed.tokens[start:stop].tolist()
        assert (tokens[0], tokens[-1]) == (tokenizer.bos, tokenizer.eos)
        assert tokenizer.decode(tokens[1:-1]) == document["text"]


def test_a_second_call_reads_the_cache_and_changed_content_or_tokenizer_does_not(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "corpus.jsonl", tmp_path / "cache"
    path.write_bytes(LINES)
    first = pack_corpus(path, tokenizer, cache)
    copy = shutil.copy(path, tmp_path / "same content.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "read_documents", None)  # calling it would fail
        again = pack_corpus(Path(copy), tokenizer, cache)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    path.write_bytes(LINES * 2)
    assert len(pack_corpus(path, tokenizer, cache).tokens) == 2 * len(first.tokens)
    pack_corpus(path, Tokenizer.train([LINES.decode()], 280), cache)
    assert len(list(cache.iterdir())) == 3


def write_lines(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_titles_and_groups_stay_with_their_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines: list[dict[str, object]] = [
        {"text": "One.", "title": "A", "group": "wiki"},
        {"text": "   "},  # no document
        {"text": "Two.", "group": "book"},
        {"text": "Three.", "title": "C"},
        {"text": "Four.", "title": None, "group": None},
        {"text": "Five.", "title": 5, "group": 2024},
        {"text": "Six.", "group": "<b>größe</b>"},
    ]
    path = write_lines(tmp_path / "corpus.jsonl", lines)
    for _ in ("tokenized", "from the cache"):
        packed = pack_corpus(path, tokenizer, tmp_path / "cache")
        assert packed.groups == ["wiki", "book", "", "", "2024", "<b>größe</b>"]
        assert packed.titles == ["A", "", "C", "", "5", ""]


def test_groups_of_equal_texts_are_not_taken_from_one_another(tmp_path: Path, tokenizer: Tokenizer) -> None:
    groups = []
    for name in ("a", "b", ""):
        path = write_lines(tmp_path / f"{name}.jsonl", [{"text": "The same text.", "group": name}])
        groups.append(pack_corpus(path, tokenizer, tmp_path / "cache").groups)
    assert groups == [["a"], ["b"], [""]]


def test_a_cache_of_an_earlier_format_is_left_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path, cache = write_lines(tmp_path / "corpus.jsonl", [{"text": "Text.", "group": "g"}]), tmp_path / "cache"
    # As memscope 0.1 left it: its key had no format in it, its table no groups.
    text = sha256_file(path) + tokenizer.backend.to_str()
    earlier = cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    earlier.mkdir(parents=True)
    np.arange(7, dtype=np.uint16).tofile(earlier / "tokens.bin")
    write_table(earlier / "documents.parquet", {"title": ["x"], "length": [7]})
    write_json(earlier / "meta.json", {"dtype": "uint16", "source": "x"})
    packed = pack_corpus(path, tokenizer, cache)
    assert packed.groups == ["g"]
    assert packed.tokens[0] == tokenizer.bos
    assert len(list(cache.iterdir())) == 2


def test_training_windows_cover_the_corpus_once_per_epoch() -> None:
    corpus = make_corpus([7, 30, 14])  # 51 tokens: 10 windows of 5 with a successor each
    order = TrainingOrder(corpus, window=5, seed=0)
    assert order.n_windows == 10
    epochs = [order.batch(epoch * 10, 10) for epoch in range(3)]
    for batch in epochs:
        np.testing.assert_array_equal(np.sort(batch[:, 0]), np.arange(0, 50, 5))
        np.testing.assert_array_equal(batch, batch[:, :1] + np.arange(6))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], TrainingOrder(corpus, 5, seed=1).batch(0, 10))


def test_a_sample_does_not_depend_on_what_was_read_before() -> None:
    corpus = make_corpus([200])
    whole = TrainingOrder(corpus, window=5, seed=3).batch(0, 120)  # three epochs of 39, and a bit
    wandering = TrainingOrder(corpus, window=5, seed=3)
    for sample in (100, 3, 78, 3, 41, 119, 0):
        np.testing.assert_array_equal(wandering.batch(sample, 1)[0], whole[sample])


def test_a_corpus_shorter_than_a_window_is_refused_with_both_numbers() -> None:
    assert TrainingOrder(make_corpus([6]), window=5, seed=0).n_windows == 1
    with pytest.raises(InputError, match=r"corpus\.jsonl: 5 tokens do not fill one window of 5 \+ 1"):
        TrainingOrder(make_corpus([5]), window=5, seed=0)


@pytest.mark.parametrize("lengths", [[2, 5, 3], [4], [1, 1, 9, 2]])
@pytest.mark.parametrize("length", [1, 2, 4, 50])
def test_document_windows_predict_every_token_but_the_first_once(lengths: list[int], length: int) -> None:
    corpus = make_corpus(lengths)
    windows = document_windows(corpus, length)
    covered = [token for window in windows for token in range(window.start, window.end)]
    assert covered == list(range(sum(lengths)))
    for window in windows:
        assert window.end - window.start <= length
        assert corpus.starts[window.doc] <= window.start < window.end <= corpus.starts[window.doc + 1]
        assert window.pos == window.start - corpus.starts[window.doc]
    batch = window_batch(corpus, windows, pad=0)
    targets = batch.targets[batch.targets >= 0]
    assert sorted(targets) == sorted(set(range(sum(lengths))) - set(corpus.starts[:-1].tolist()))


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_max_tokens_is_the_number_of_tokens_covered(max_tokens: int) -> None:
    windows = document_windows(make_corpus([3, 4, 4]), 2, max_tokens)
    assert [token for window in windows for token in range(window.start, window.end)] == list(range(max_tokens))


def test_window_batch_pads_on_the_right_and_has_no_target_past_a_document() -> None:
    corpus = make_corpus([3, 4])  # tokens 0 1 2 | 3 4 5 6
    batch = window_batch(corpus, document_windows(corpus, 3), pad=99)
    assert batch.tokens.tolist() == [[0, 1, 2], [3, 4, 5], [6, 99, 99]]
    assert batch.targets.tolist() == [[1, 2, -100], [4, 5, 6], [-100, -100, -100]]
    assert batch.mask.tolist() == [[True, True, True], [True, True, True], [True, False, False]]
