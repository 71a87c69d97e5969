"""Files of text and of records as people have them: damaged, in other encodings, with odd names, in
any script. What can be used is read, what cannot is named, nothing ends in a traceback."""

import gzip
import json
import pickle
import random
import time
import zlib

import pytest
from fuzz_files import record_cases, source_cases

from rlhf_jax.data.corpus import find, prepare
from rlhf_jax.data.layouts import load
from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.data.signals import comparisons_of, examples_of
from rlhf_jax.data.sources import documents
from rlhf_jax.study.config import ConfigError, CorpusConfig

SLOW = pytest.param(3000, marks=pytest.mark.slow)


def lines_of(raw):
    return [x for x in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n") if x.strip()]


@pytest.mark.parametrize("n", [150, SLOW])
def test_every_row_of_records_is_used_or_left_out_by_name(tmp_path, n):
    outcomes = {"read": 0, "in part": 0, "refused": 0}
    for what, name, raw in record_cases(n, n):
        path = tmp_path / name
        path.write_bytes(raw)
        begin, refused = time.process_time(), None
        try:
            loaded = load(path)
        except ConfigError as e:
            refused = str(e)
        if refused is not None:
            assert name in refused and len(refused) < 1000, what
            outcomes["refused"] += 1
            continue
        assert time.process_time() - begin < 20, what
        outcomes["in part" if loaded.skipped else "read"] += 1
        for text, _ in examples_of(loaded.records):
            text.encode()
        comparisons_of(loaded.records)
        assert loaded.skipped == loaded.left_out.rows, what
        if name == "records.jsonl" and not raw.lstrip().startswith(b"["):
            assert len(loaded.records) + loaded.skipped == len(lines_of(raw)), what
    assert min(outcomes.values()) > n // 20


@pytest.mark.parametrize("n", [150, SLOW])
def test_every_row_of_a_source_is_used_or_left_out_by_name(tmp_path, n):
    outcomes = {"read": 0, "in part": 0, "refused": 0}
    for what, name, raw in source_cases(n, n):
        path, said, refused = tmp_path / name, [], None
        path.write_bytes(raw)
        try:
            texts = [text for _, text in documents(str(path), tmp_path, said.append)]
        except ConfigError as e:
            refused = str(e)
        if refused is not None:
            assert name in refused and len(refused) < 1000, what
            outcomes["refused"] += 1
            continue
        outcomes["in part" if said else "read"] += 1
        for text in texts:
            text.encode()
        if name == "text.jsonl" and len(texts) < len(lines_of(raw)) and not raw.startswith(b"["):
            assert said or any(json.loads(x)["text"].isspace() for x in lines_of(raw)), what
    assert min(outcomes.values()) > n // 20


NAMES = [
    "a[1].jsonl",
    "a#b.jsonl",
    "a:b.jsonl",
    "tfds:x.jsonl",
    "100%.jsonl",
    "a b.jsonl",
    "\u00fc~.jsonl",
    "*?.jsonl",
    "m.od:func.jsonl",
    "export-2024-05-01T10:30:00.jsonl",
    "#.jsonl",
    "-x.jsonl",
    "dir[1]#2/x.jsonl",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("absolute", [True, False])
def test_an_existing_file_is_a_file_whatever_its_name(tmp_path, monkeypatch, name, absolute):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir[1]#2").mkdir()
    for other in NAMES:
        text = f"of {other}"
        (tmp_path / other).write_text(json.dumps({"text": text, "body": "b" + text}) + "\n")
    source = str(tmp_path / name) if absolute else name
    assert [t for _, t in documents(source, tmp_path)] == [f"of {name}"]
    assert [t for _, t in documents(f"{source}#body", tmp_path)] == [f"bof {name}"]


def test_globs_find_files_in_folders_of_any_name(tmp_path):
    folder = tmp_path / "dir[1]#2"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jsonl").write_text('{"text": "a", "body": "b"}\n')
    assert len(list(documents(f"{folder}/[01].jsonl", tmp_path))) == 2
    assert [t for _, t in documents(f"{folder}/*.jsonl#body", tmp_path)] == ["b"] * 3
    for wrong, message in (
        (str(folder), "is a folder"),
        (f"{folder}/9*", "no file there"),
        ("x" * 5000, "no file there"),
        ("a\0b", "no file there"),
    ):
        with pytest.raises(ConfigError, match=message):
            list(documents(wrong, tmp_path))


def test_rows_of_a_source_that_cannot_be_used_are_left_out_and_named(tmp_path):
    path, said = tmp_path / "t.jsonl", []
    rows = [
        '{"text": "a"}',
        "{",
        "[1]",
        '{"txt": "b"}',
        '{"text": null}',
        '{"text": 3}',
        '{"text": "\\ud800"}',
        '{"text": "b\u2028c"}',
    ]
    path.write_text("\n".join(rows), encoding="utf-8")
    found = list(documents(str(path), tmp_path, said.append))
    assert found == [("t.jsonl:1", "a"), ("t.jsonl:8", "b\u2028c")]
    (line,) = said
    assert line.startswith(f"{path}: 6 rows left out") and "(row 2)" in line


def zeroed(raw, at):
    return raw[:at] + bytes(40) + raw[at + 40 :]


def stops_in_the_middle(raw):
    try:
        gzip.decompress(raw)
    except zlib.error:
        return True
    except OSError:  # only the checksum at the end is wrong
        return False


@pytest.mark.parametrize("how", ["cut", "flipped", "a member cut"])
def test_a_damaged_archive_is_named_with_the_row(tmp_path, how):
    lines = b"".join(b'{"text": "%d %d"}\n' % (i, i * i) for i in range(5000))
    raw = bytearray(gzip.compress(lines))
    if how == "flipped":
        raw = next(
            filter(stops_in_the_middle, (zeroed(raw, at) for at in range(len(raw) // 2, 10**6, 7)))
        )
    raw = {"cut": raw[:-2000], "flipped": raw, "a member cut": gzip.compress(lines) + raw[:-2000]}[
        how
    ]
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(raw)
    for read in (load, lambda p: list(documents(str(p), tmp_path))):
        with pytest.raises(
            ConfigError, match=r"t\.jsonl\.gz: damaged gzip file.* up to row (\d+)"
        ) as e:
            read(path)
        row = int(str(e.value).rpartition("up to row ")[2].split(".")[0])
        least = 5000 if how == "a member cut" else 1000
        assert least < row < least + 5000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "\u00e9t\u00e9\n".encode("latin-1") * 3, r"line 1 holds the byte 0xe9.*LATIN1"),
        ("t.txt", b"fine\nnot \xff", r"line 2 holds the byte 0xff .byte 9"),
        ("t.txt", "a river".encode("utf-16"), "UTF-16"),
        ("t.jsonl", '{"text": "a"}'.encode("utf-16-be"), "UTF-16"),
        ("t.jsonl.gz", b"{}\n", "not gzip, as its name says"),
        ("t.parquet", b"{}\n", "not readable as parquet"),
        ("t.txt", b"%PDF-1.4\n1 0 obj\n", "a PDF document"),
        ("t.txt", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("t.txt.gz", gzip.compress(gzip.compress(b"a river", mtime=0), mtime=0), "gzip twice"),
        ("t.md", b"a river", r"t\.md is none of .*ends in \.txt"),
    ],
)
def test_another_encoding_or_format_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        list(documents(str(tmp_path / name), tmp_path))


def test_texts_of_a_callable_must_be_texts(tmp_path):
    for name, message in (("numbers", "gave 3; expected texts"), ("halves", "text 1, ")):
        with pytest.raises(ConfigError, match=message):
            list(documents(f"test_data_files:{name}", tmp_path))


def numbers():
    return ["a", 3]


def halves():
    return ["\ud800"]


SCRIPTS = {  # letters, space, end of a sentence
    "Russian": ("абвгдежзиклмнопрстуфхцч", " ", ". "),
    "Greek": ("αβγδεζηθικλμνξοπρστυφχψω", " ", ". "),
    "Arabic": ("ابتثجحخدذرزسشصضطظعغفقكلم", " ", "؟ "),
    "Hebrew": ("אבגדהוזחטיכלמנסעפצקרשת", " ", ". "),
    "Hindi": ("अआइईउऊएऐओऔकखगघचछजझटठडढण", " ", "। "),
    "Korean": ("가나다라마바사아자차카타파하", " ", ". "),
    "Chinese": ("我你他在家里看书写信喝茶走路说话天地", "", "。"),
    "Japanese": ("あいうえおかきくけこさしすせそ山川", "", "。"),
    "Thai": ("กขคงจฉชซญดตถทธนบปผพฟภมยรลว", "", " "),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_sentences_of_any_script_give_prompts(tmp_path, name):
    letters, space, end = SCRIPTS[name]
    rng = random.Random(0)
    words = ["".join(rng.choices(letters, k=rng.randrange(1, 4))) for _ in range(60)]

    def sentence():
        text = space.join(rng.choices(words, k=rng.randrange(6, 10)))
        return text[0].upper() + text[1:] + end

    path = tmp_path / "t.jsonl"
    texts = ["".join(sentence() for _ in range(8)) for _ in range(150)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    cfg = CorpusConfig((str(path),), vocab=320, seq_len=32, validation=0.1, test=0.1)
    corpus = prepare(cfg, tmp_path / "runs", lambda _: None)
    assert (
        sum(corpus.manifest["splits"][s]["documents"] for s in ("train", "validation", "test"))
        == 150
    )
    whole = "\n".join(d["text"] for d in corpus.documents("train"))
    found = prompts_from(corpus, "train", 10, 8, 0, 60)
    for prompt in found:
        said = prompt.prompt + prompt.response
        at = whole.index(said)
        assert len(prompt.prompt_ids) == 8 and at >= 0
        before = whole[:at].rstrip(" ")[-1:]
        assert before in ("", "\n") or before == end.strip() or not end.strip()
        assert said.endswith(end.strip()) and (end.strip() or whole[at + len(said)] in " \n")


def test_what_is_left_out_of_sources_stays_known(tmp_path):
    """The corpus says it again when it is found, and no longer once the file is mended."""
    words = random.Random(0).choices(
        ["river", "lantern", "garden", "letter", "bridge", "window", "farmer"], k=4000
    )
    good = [json.dumps({"text": " ".join(words[i : i + 40])}) for i in range(0, 4000, 40)]
    path, root = tmp_path / "f.JSONL", tmp_path / "runs"
    cfg = CorpusConfig(
        sources=(str(path),), vocab=300, seq_len=16, validation=0.0, test=0.0, dedup=False
    )
    path.write_text("\n".join([*good, "not JSON"]))
    made = prepare(cfg, root, log=lambda _: None)
    assert "1 row left out: not JSON" in made.left_out[str(path)]
    found = find(cfg, root)
    assert found == made and pickle.loads(pickle.dumps(found)).left_out == made.left_out
    path.write_text("\n".join(good))
    mended = prepare(cfg, root, log=lambda _: None)
    assert mended.left_out == {} and mended.content_hash == made.content_hash
    assert find(cfg, root).left_out == {}
