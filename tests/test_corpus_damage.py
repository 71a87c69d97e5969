"""Damage to each file of a prepared corpus heals, or is said in words that name the file; and a
corpus is found by the content of its sources, wherever they lie."""

from __future__ import annotations

import json
import os
import random
import shutil

import numpy as np
import pytest
from tiny_models import WORDS

from rlhf_jax import cli
from rlhf_jax.data import corpus as corpus_module
from rlhf_jax.data import find, integrity, prepare, recipes
from rlhf_jax.data.corpus import SPLITS, recipe
from rlhf_jax.study import digests, load_study
from rlhf_jax.study.config import ConfigError, CorpusConfig
from rlhf_jax.study.files import write_json
from rlhf_jax.study.runs import Runs

STUDY = """
from pathlib import Path
from rlhf_jax.kinds import SFT, Pretrain
from rlhf_jax.study import CorpusConfig, ModelConfig
from rlhf_jax.study import Study


def study(tiny):
    model = ModelConfig(layers=1, width=32, heads=2, vocab=320)
    base = Pretrain("base", model=model, batch=2, tokens=256)
    sft = SFT("sft", base="base", records={records!r})
    corpus = CorpusConfig(sources=({source!r},), vocab=320, seq_len=32, validation=0.2, test=0.2,
                          heldout_tokens=500, dedup=False)
    return Study("paths", (base, sft), corpus)
"""


def quiet(_: str) -> None:
    pass


def texts(seed: int = 0) -> str:
    rng = random.Random(seed)
    lines = (" ".join(rng.choices(WORDS, k=40)) for _ in range(80))
    return "".join(
        json.dumps({"text": f"Story {i}. {line}"}) + "\n" for i, line in enumerate(lines)
    )


def config(*sources) -> CorpusConfig:
    return CorpusConfig(
        sources, vocab=320, seq_len=32, validation=0.2, test=0.2, heldout_tokens=500, dedup=False
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source and a runs folder with its corpus, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "a.jsonl").write_text(texts())
    prepare(config(str(folder / "a.jsonl")), folder / "runs", quiet)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """(configuration, runs folder, corpus folder) of a copy."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    shutil.copy(made / "a.jsonl", tmp_path / "a.jsonl")
    (folder,) = (p.parent for p in tmp_path.glob("runs/data/*/manifest.json"))
    return config(str(tmp_path / "a.jsonl")), tmp_path / "runs", folder


def content(corpus) -> list:
    """All that training and evaluation read."""
    rows = [np.array(corpus.rows(s)).tolist() for s in SPLITS]
    batches = [b["tokens"].tolist() for b in corpus.heldout(8)]
    documents = [[d["text"] for d in corpus.documents(s)] for s in SPLITS]
    return [rows, batches, corpus.tokenizer.model, documents]


DAMAGE = {
    "truncated": lambda p, other: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "emptied": lambda p, other: p.write_bytes(b""),
    "flipped": lambda p, other: p.write_bytes(flipped(p.read_bytes())),
    "zeroed": lambda p, other: p.write_bytes(p.read_bytes()[:128] + bytes(p.stat().st_size - 128)),
    "swapped": lambda p, other: shutil.copy(other, p),
    "deleted": lambda p, other: p.unlink(),
}
FILES = (
    "manifest.json",
    "tokenizer.model",
    "rows-train.npy",
    "rows-validation.npy",
    "rows/1.0.0/rows-train.*",
    "rows/1.0.0/features.json",
    "documents/1.0.0/documents-test.*",
    "documents/1.0.0/dataset_info.json",
)


def flipped(raw: bytes) -> bytes:
    """One bit of a digit or of a byte near the end is another."""
    at = len(raw) * 3 // 4
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def damage(folder, pattern: str, how: str) -> None:
    """Swapped: with another file of its kind."""
    (path,) = folder.glob(pattern)
    others = [p for p in sorted(path.parent.glob(f"*{path.suffix}")) if p != path]
    DAMAGE[how](path, (others or [folder / "rows-test.npy"])[0])


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("pattern", FILES)
def test_a_damaged_file_is_named_or_healed_and_never_read(copy, made, pattern, how):
    cfg, runs, folder = copy
    expected = content(find(config(str(made / "a.jsonl")), made / "runs"))
    damage(folder, pattern, how)
    if pattern.startswith("rows"):
        assert content(find(cfg, runs)) == expected
        return
    with pytest.raises(ConfigError, match="run STUDY` prepares the corpus again") as said:
        content(find(cfg, runs))
    assert str(folder / pattern.partition("*")[0]) in str(said.value)


@pytest.mark.parametrize("how", ["flipped", "deleted"])
@pytest.mark.parametrize("pattern", ["manifest.json", "tokenizer.model", "rows/1.0.0/rows-train.*"])
def test_prepare_mends_a_damaged_corpus_from_its_sources(copy, made, pattern, how):
    cfg, runs, folder = copy
    damage(folder, pattern, how)
    said: list[str] = []
    mended = prepare(cfg, runs, said.append)
    assert mended.folder == folder and any("preparing the corpus again" in text for text in said)
    assert content(mended) == content(find(config(str(made / "a.jsonl")), made / "runs"))
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".building")] == []


def test_damage_without_sources_is_said_with_what_is_gone(copy):
    cfg, runs, folder = copy
    find(cfg, runs)
    (folder / "tokenizer.model").unlink()
    os.remove(cfg.sources[0])
    with pytest.raises(ConfigError, match=r"damaged, and what it was made of is gone: .*a\.jsonl"):
        prepare(cfg, runs, quiet)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "I/O error")]
)
def test_what_cannot_be_read_is_not_taken_for_damage(copy, monkeypatch, error):
    cfg, runs, folder = copy
    find(cfg, runs)

    def fails(*_, **__):
        raise error

    with monkeypatch.context() as m:
        m.setattr(integrity, "file_digest", fails)
        os.utime(folder / "tokenizer.model")
        with pytest.raises(ConfigError, match=r"cannot be read.*run the same command"):
            prepare(cfg, runs, quiet)
    with monkeypatch.context() as m:
        m.setattr(type(folder), "read_text", fails)
        with pytest.raises(ConfigError, match=r"manifest\.json cannot be read"):
            integrity.read_manifest(folder)
    monkeypatch.setattr(corpus_module, "_build", None)
    assert prepare(cfg, runs, quiet).folder == folder


def test_rows_and_their_stored_copy_both_damaged_are_refused(copy):
    cfg, runs, folder = copy
    damage(folder, "rows-validation.npy", "swapped")
    damage(folder, "rows/1.0.0/rows-validation.*", "flipped")
    with pytest.raises(ConfigError, match=r"rows/1\.0\.0/rows-validation.*is damaged"):
        find(cfg, runs).heldout(8)


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied", "deleted"])
def test_damage_to_the_index_is_harmless(copy, how, monkeypatch):
    cfg, runs, folder = copy
    for path in list((runs / "data" / "index").iterdir()):
        DAMAGE[how](path, None)
    monkeypatch.setattr(corpus_module, "_build", None)
    assert find(cfg, runs).folder == prepare(cfg, runs, quiet).folder == folder
    shutil.rmtree(runs / "data" / "index")
    assert find(cfg, runs).folder == prepare(cfg, runs, quiet).folder == folder


def test_files_are_read_once_a_process(copy, monkeypatch):
    cfg, runs, folder = copy
    find(cfg, runs).rows("train")
    monkeypatch.setattr(integrity, "file_digest", None)
    find(cfg, runs).rows("train")
    os.utime(folder / "rows-train.npy")
    with pytest.raises(TypeError):
        find(cfg, runs).rows("train")


# --- corpora of the first release
# ------------------------------------------------------------------


def as_first_release(cfg, runs, folder) -> None:
    """No digests, and an index entry by path, size and time."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("digest", "digests", "recipes"):
        del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(runs / "data" / "index")
    (runs / "data" / "index").mkdir()
    name = recipes._first_key(cfg)
    entry = {"folder": folder.name, "sources": list(cfg.sources)}
    (runs / "data" / "index" / f"{name}.json").write_text(json.dumps(entry))


def test_a_corpus_of_the_first_release_is_found_and_gets_digests(copy, monkeypatch):
    cfg, runs, folder = copy
    before = content(find(cfg, runs))
    as_first_release(cfg, runs, folder)
    monkeypatch.setattr(corpus_module, "_build", None)
    assert content(find(cfg, runs)) == before
    assert "rows-train.npy" in json.loads((folder / "manifest.json").read_text())["digests"]
    assert content(prepare(cfg, runs, quiet)) == before


@pytest.mark.parametrize(
    "pattern",
    [
        "rows-validation.npy",
        "rows/1.0.0/rows-test.*",
        "tokenizer.model",
        "documents/1.0.0/documents-test.*",
    ],
)
def test_damage_to_a_corpus_of_the_first_release_is_seen(copy, pattern):
    cfg, runs, folder = copy
    before = content(find(cfg, runs))
    as_first_release(cfg, runs, folder)
    damage(folder, pattern, "swapped")
    if not pattern.startswith("rows-"):
        with pytest.raises(ConfigError, match="is damaged"):
            content(find(cfg, runs))
    assert content(prepare(cfg, runs, quiet)) == before


# --- sources by content
# ----------------------------------------------------------------------------


def test_the_recipe_depends_on_content_not_on_paths_times_or_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("a.jsonl", "sub/b.jsonl", "[1] x.jsonl"):
        (tmp_path / name).write_text(texts())
    (tmp_path / "a.txt").write_text(texts())
    (tmp_path / "other.jsonl").write_text(texts(1))
    first = recipe(config("a.jsonl"))
    for spelling in (
        str(tmp_path / "a.jsonl"),
        "./a.jsonl",
        "sub/../a.jsonl",
        "sub/b.jsonl",
        "s*/*.jsonl",
        "a.jsonl#text",
        "[1] x.jsonl",
        tmp_path / "a.jsonl",
    ):
        assert recipe(config(spelling)) == first, spelling
    os.utime("a.jsonl", (1, 1))
    assert recipe(config("a.jsonl")) == first
    for different in ("a.txt", "other.jsonl", "a.jsonl#other", "*.jsonl"):
        assert recipe(config(different)) != first, different


def test_a_source_that_is_gone_is_remembered_and_an_edited_one_is_another(copy, capsys):
    cfg, runs, folder = copy
    (source,) = cfg.sources
    assert find(cfg, runs).folder == folder
    moved = source.replace("a.jsonl", "moved.jsonl")
    os.rename(source, moved)
    assert find(cfg, runs).folder == prepare(cfg, runs, quiet).folder == folder
    assert capsys.readouterr().err.count(f"no longer there: {source}; using corpus") == 1
    assert find(config(moved), runs).folder == folder
    with open(source, "w") as file:
        file.write(texts(1))
    assert find(cfg, runs) is None
    with pytest.raises(ConfigError, match="no file there"):
        find(config(source + "x"), runs)


def test_digests_are_remembered_by_size_and_time(copy, monkeypatch):
    cfg, runs, _ = copy
    os.utime(cfg.sources[0], (1, 1))
    module = digests.Digests
    reads: list[str] = []
    real = module._new
    monkeypatch.setattr(
        module, "_new", lambda self, key, *a: (reads.append(key), real(self, key, *a))[1]
    )
    monkeypatch.setattr(digests, "SETTLED", -1e9)
    find(cfg, runs), find(cfg, runs)
    assert reads == [cfg.sources[0]]
    with open(cfg.sources[0], "r+") as file:
        file.write('{"text": "Tale ')
    os.utime(cfg.sources[0], (1, 1))
    assert find(cfg, runs) is None and len(reads) == 2


def test_what_two_commands_remember_at_once_is_all_kept(tmp_path):
    path, fields = tmp_path / "table", ("n",)
    one, other = digests.Remembered(path, fields), digests.Remembered(path, fields)
    one.add("a", {"n": 1})
    other.add("b", {"n": 2})
    one.save(), other.save()
    assert digests.Remembered(path, fields).known == {"a": {"n": 1}, "b": {"n": 2}}
    for damaged in ('{"a": {"n": 1}', "[1]", '{"a": {"m": 1}}', '{"a": 3}'):
        path.write_text(damaged)
        assert digests.Remembered(path, fields).known == {}


# --- the command line
# ------------------------------------------------------------------------------


@pytest.fixture
def study(copy, tmp_path):
    """A study file whose cells are done. Returns how `status` sees them through the file at some
    path."""
    cfg, runs, _ = copy
    (tmp_path / "r.jsonl").write_text("{}\n")
    path = tmp_path / "paths.py"
    path.write_text(STUDY.format(records=str(tmp_path / "r.jsonl"), source=cfg.sources[0]))
    loaded = load_study(path)
    for folder in Runs(runs).folders(loaded, find(cfg, runs).content_hash).values():
        write_json(folder.path / "done.json", {"seconds": 1.0})
    return path


def states(capsys, path, runs) -> set[str]:
    capsys.readouterr()
    assert cli.main(["status", str(path), "--runs", str(runs), "--json"]) == 0
    return {cell["state"] for cell in json.loads(capsys.readouterr().out)["cells"]}


def test_a_finished_study_stays_finished_however_its_files_are_spelled_touched_moved_or_deleted(
    study, copy, tmp_path, capsys, monkeypatch
):
    cfg, runs, _ = copy
    assert states(capsys, study, runs) == {"done"}
    monkeypatch.chdir(tmp_path)
    for records, source in (("r.jsonl", "a.jsonl"), ("./r.jsonl", "./a.jsonl")):
        relative = tmp_path / "relative.py"
        relative.write_text(STUDY.format(records=records, source=source))
        assert states(capsys, "relative.py", "runs") == {"done"}
    os.utime(cfg.sources[0])
    os.utime(tmp_path / "r.jsonl")
    assert states(capsys, study, runs) == {"done"}
    os.remove(cfg.sources[0])
    os.remove(tmp_path / "r.jsonl")
    assert states(capsys, study, runs) == {"done"}
    assert cli.main(["plan", str(study), "--runs", str(runs)]) == 0
    said = capsys.readouterr().err
    assert f"no longer there: {cfg.sources[0]}" in said
    assert f"no longer there: {tmp_path / 'r.jsonl'}" in said
    (tmp_path / "r.jsonl").write_text("[]")
    assert states(capsys, study, runs) == {"done", "waiting"}
    (tmp_path / "a.jsonl").write_text(texts(1))
    assert states(capsys, study, runs) == {"waiting"}


@pytest.mark.parametrize("how", ["truncated", "flipped", "deleted"])
def test_commands_name_a_damaged_manifest(study, copy, capsys, how):
    _, runs, folder = copy
    damage(folder, "manifest.json", how)
    for command in ("status", "report", "plan"):
        assert cli.main([command, str(study), "--runs", str(runs)]) == 2
        said = capsys.readouterr().err
        assert f"{folder}/manifest.json is damaged" in said and "prepares the corpus again" in said
