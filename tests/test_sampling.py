"""Guarantees of everything that samples: a sample is a function of (seed, split, prompt, number)
alone, so neither batching nor what lies on disk from before moves a result."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import GQA, full_logits, log_softmax, mesh, noisy_params, tiny_corpus

from rlhf_jax.data import feedback
from rlhf_jax.evals.heldout import heldout_rows
from rlhf_jax.evals.next_tokens import likeliest
from rlhf_jax.kinds import (
    PPO,
    BestOfN,
    Compare,
    Evaluate,
    Pretrain,
    Reward,
    TaskConfig,
    rankings,
    sampling,
)
from rlhf_jax.kinds.best_of_n import job as best_of_n
from rlhf_jax.kinds.compare.job import comparisons
from rlhf_jax.kinds.compare.job import run as compare
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.evaluate import job as evaluate
from rlhf_jax.kinds.ppo.job import prompt_rows
from rlhf_jax.model.sampler import generate, sample_keys
from rlhf_jax.model.sharding import AXES, joined, make_mesh, map_rows, place_batch
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, ModelConfig, to_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.results import as_json
from rlhf_jax.train import Runtime, Stopped

__all__ = ["mesh"]
TASK = TaskConfig(prompt_len=6, response_len=5, gold=f"{__name__}:letters")


def letters(prompts, responses):
    return np.array([float(len(r)) for r in responses])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def samplers():
    """Compiled samplers by the number of samples, for all cells that compare: they differ in
    nothing else."""
    return {}


@pytest.fixture
def context(corpus, mesh, monkeypatch, samplers):
    """(cell, folder) -> its context, with random models for parents."""
    make_sampler = sampling._sampler
    once = lambda ctx, cell: samplers.setdefault(cell.k, make_sampler(ctx, cell))  # noqa: E731
    monkeypatch.setattr(sampling, "_sampler", once)
    model = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab)
    models = {"base": noisy_params(model), "other": noisy_params(model, 1)}
    monkeypatch.setattr(Context, "language_model", lambda self, name: models[name])

    def make(cell, folder):
        parents = (Pretrain("base", model=model), Pretrain("other", model=model, seed=1))
        study = Study("s", (*parents, cell), corpus.cfg)
        beat = SimpleNamespace(progress=lambda **_: None)
        folders = {cell.name: CellFolder(folder)}
        return Context(study, cell, folders, corpus, Runtime(mesh, AXES), beat)

    return make


def arrays(folder, name):
    return sampling.load_arrays(folder / "results" / f"{name}.npz")


def same(one, other):
    assert one.keys() == other.keys()
    for k in one:
        if one[k].dtype.kind == "f":
            np.testing.assert_allclose(one[k], other[k], atol=1e-4, err_msg=k)
        else:
            np.testing.assert_array_equal(one[k], other[k], err_msg=k)


COMPARE = Compare("c", policy="base", task=TASK, prompts=11, heldout_prompts=5, k=3, noise=1.0)


def compared(context, folder, monkeypatch, chunk, **changes):
    monkeypatch.setattr(sampling, "CHUNK", chunk)
    ctx = context(dataclasses.replace(COMPARE, **changes), folder)
    result = compare(ctx, ctx.cell)
    return result, {s: arrays(folder, s) for s in ("train", "validation")}


def test_comparisons_do_not_depend_on_the_chunks_that_they_are_sampled_in(
    context, tmp_path, monkeypatch
):
    one, other = (compared(context, tmp_path / str(n), monkeypatch, n) for n in (8, 4))
    assert one[0] == other[0]
    for split in one[1]:
        same(one[1][split], other[1][split])
    texts = [(tmp_path / n / "results" / "comparisons.jsonl").read_bytes() for n in ("8", "4")]
    assert texts[0] == texts[1]
    # Samples differ within a prompt, between prompts and between splits.
    tokens = one[1]["train"]["responses"]
    assert len({tuple(r) for r in tokens.reshape(-1, 5).tolist()}) > 25
    assert (tokens[:5] != one[1]["validation"]["responses"]).any((1, 2)).all()


def test_fewer_samples_and_prompts_of_the_same_seed_are_the_first_of_more(
    context, tmp_path, monkeypatch
):
    _, many = compared(context, tmp_path / "many", monkeypatch, 4)
    _, few = compared(context, tmp_path / "few", monkeypatch, 4, k=2, prompts=6)
    np.testing.assert_array_equal(few["train"]["responses"], many["train"]["responses"][:6, :2])


def test_a_chunk_of_another_size_is_not_taken_for_one_of_this(context, tmp_path, monkeypatch):
    whole = compared(context, tmp_path / "whole", monkeypatch, 4)
    monkeypatch.setattr(sampling, "CHUNK", 8)
    cut = context(COMPARE, tmp_path / "cut")
    cut.runtime.stop.set()
    with pytest.raises(Stopped, match="8 of 16"):
        compare(cut, cut.cell)
    # The first chunk holds prompts 0 to 7; with chunks of 4 it must not be followed by 4 to 7
    # again.
    got = compared(context, tmp_path / "cut", monkeypatch, 4)
    assert got[0] == whole[0]
    same(got[1]["train"], whole[1]["train"])


def broken(data, how):
    if how == "truncated":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    at = data.index(b"responses.npy") + 200  # within the tokens
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def test_a_damaged_chunk_is_sampled_again(context, tmp_path, monkeypatch):
    whole = compared(context, tmp_path, monkeypatch, 4)
    path = tmp_path / "results" / "chunk-train-4.npz"
    data, kept = path.read_bytes(), arrays(tmp_path, "chunk-train-4")
    for how in ("truncated", "empty", "flipped"):
        path.write_bytes(broken(data, how))
        ctx, said = context(COMPARE, tmp_path), []
        ctx.runtime.log = said.append
        assert compare(ctx, ctx.cell) == whole[0]
        assert "chunk-train-4.npz is damaged" in said[0] and len(said) == 1
        same(sampling.load_arrays(path), kept)
        for split in whole[1]:
            same(arrays(tmp_path, split), whole[1][split])


def test_damaged_or_missing_comparisons_of_a_parent_are_named(context, tmp_path, monkeypatch):
    compared(context, tmp_path, monkeypatch, 8)
    path, cell = tmp_path / "results" / "train.npz", Compare("c")
    ctx = SimpleNamespace(folders={"c": CellFolder(tmp_path)})
    path.write_bytes(broken(path.read_bytes(), "flipped"))
    with pytest.raises(
        ConfigError, match=r"train.npz is damaged .* make the cell again with `--force c`"
    ):
        comparisons(ctx, cell, Reward("r"))
    path.unlink()
    with pytest.raises(ConfigError, match=r"train.npz.*`--force c`"):
        comparisons(ctx, cell, Reward("r"))


def test_best_of_n_does_not_depend_on_how_many_are_sampled_at_once(context, tmp_path, monkeypatch):
    cell = BestOfN(
        "b", policy="base", reward=f"{__name__}:letters", task=TASK, split="train", prompts=7, n=6
    )
    found = []
    for rows, at_once in ((512, 64), (8, 4)):
        monkeypatch.setattr(best_of_n, "ROWS", rows)
        monkeypatch.setattr(best_of_n, "AT_ONCE", at_once)
        ctx = context(cell, tmp_path / str(rows))
        result = best_of_n.run(ctx, cell)
        records = feedback.read(ctx.folder.results / "demonstrations.jsonl")
        found.append((to_json(result), records, arrays(tmp_path / str(rows), "samples")))
    (result, records, samples), (again, records_again, samples_again) = found
    assert result == again and records == records_again
    same(samples, samples_again)
    # And they are the samples that a comparison of the same policy, task, temperature and seed has.
    _, ranked = compared(context, tmp_path / "compare", monkeypatch, 4)
    decode = ctx.corpus.tokenizer.decode
    texts = [[decode(r.tolist()) for r in rs] for rs in ranked["train"]["responses"][:7]]
    np.testing.assert_array_equal(samples["gold"][:, :3], [[len(t) for t in ts] for ts in texts])


def test_an_evaluation_does_not_depend_on_its_chunks(context, tmp_path, monkeypatch):
    cell = Evaluate(
        "e", before="base", after="other", reward=f"{__name__}:letters", task=TASK, prompts=9
    )
    monkeypatch.setattr(evaluate, "AGAIN", 4)
    measured, heldout = {}, evaluate.heldout_rows  # of each model once: it has no chunks

    def once(params, *rest):
        if id(params) not in measured:
            measured[id(params)] = heldout(params, *rest)
        return measured[id(params)]

    monkeypatch.setattr(evaluate, "heldout_rows", once)
    found = []
    for chunk in (16, 5):
        monkeypatch.setattr(evaluate, "CHUNK", chunk)
        ctx = context(cell, tmp_path / str(chunk))
        result = as_json(evaluate.run(ctx, cell))["evaluation"]
        found.append((result, arrays(tmp_path / str(chunk), "responses")))
    (result, kept), (again, kept_again) = found
    same(kept, kept_again)
    exact = ("gain", "win_rate", "similarity_same_prompt_before", "similarity_after", "samples")
    assert {k: result[k] for k in exact} == {k: again[k] for k in exact}
    for k in ("kl", "entropy_after", "perplexity_before"):
        assert result[k] == pytest.approx(again[k], rel=1e-5)
    # The next words of the report are of the task's own prompts.
    asked = ctx.prompts(TASK, "test", 9, 0).texts[:3]
    assert list(result["next_words"]["before"]) == list(result["next_words"]["after"]) == asked
    chances = [p for _, p in result["next_words"]["before"][asked[1]]]
    ids = ctx.prompts(TASK, "test", 9, 0).ids[1:2]
    ones = np.ones_like(ids)
    params, positions = ctx.language_model("base"), np.arange(ids.shape[1])[None]
    logits = full_logits(params, ctx.model, ids, ones, positions)[0, -1]
    expected = np.sort(np.exp(log_softmax(logits)))[::-1][:10]
    np.testing.assert_allclose(chances, expected, rtol=1e-4)


def test_a_row_is_sampled_with_its_own_key_whatever_lies_beside_it(mesh):
    cfg = dataclasses.replace(GQA, layers=1)
    params = noisy_params(cfg)
    prompts = np.random.default_rng(0).integers(3, 64, (4, 3)).astype(np.int32)
    key = jax.random.key(7)

    @jax.jit
    def drawn(prompts, items, samples):
        keys = sample_keys(key, items, samples, AXES)
        return generate(
            params, cfg, prompts, keys, length=5, temperature=1.0, axes=AXES, samples=2
        ).tokens_BR

    def of(rows, samples):
        b = {
            "p": prompts[rows],
            "i": np.array(rows, np.int32),
            "s": np.tile(np.array(samples, np.int32), (len(rows), 1)),
        }
        b = place_batch(b, mesh)
        return np.asarray(drawn(b["p"], b["i"], b["s"])).reshape(len(rows), 2, -1)

    forward, backward = of([0, 1, 2, 3], [0, 1]), of([3, 2, 1, 0], [1, 0])
    np.testing.assert_array_equal(forward, backward[::-1, ::-1])
    assert (forward[:, 0] != forward[:, 1]).any()
    numbers = {
        int(jax.random.bits(sampling.split_key(s, split)))
        for s in (0, 1)
        for split in sampling.SPLITS
    }
    assert len(numbers) == 6
    keys = jax.random.key_data(sample_keys(key, jnp.array([2]), jnp.array([[0, 5]]), AXES))
    chain = jax.random.fold_in(jax.random.fold_in(key, 2), 5)
    np.testing.assert_array_equal(keys[1], jax.random.key_data(chain))


@pytest.mark.parametrize("iterations", [3, 7])
def test_prompts_of_a_shorter_ppo_cell_are_those_that_a_longer_one_begins_with(iterations):
    longer = PPO("p", iterations=12, batch=4, prompt_batches=5)
    cell = dataclasses.replace(longer, iterations=iterations)
    rows = [prompt_rows(longer, t) for t in range(12)]
    for t in range(iterations):
        np.testing.assert_array_equal(prompt_rows(cell, t), rows[t])
    for epoch in (rows[:5], rows[5:10]):  # every prompt once, in another order each time
        assert sorted(np.concatenate(epoch)) == list(range(20))
    assert np.concatenate(rows[:5]).tolist() != np.concatenate(rows[5:10]).tolist()
    # How many different prompts there are is science.
    ids = [_id(dataclasses.replace(longer, prompt_batches=n)) for n in (16, 5)]
    assert ids[0] == _id(PPO("p", iterations=12, batch=4)) != ids[1]
    with pytest.raises(
        ConfigError, match="prompt_batches = 0; expected a whole number of at least 1"
    ):
        PPO("p", prompt_batches=0)


def _id(cell):
    cell = dataclasses.replace(cell, policy="base", reward=f"{__name__}:letters")
    return Study("s", (Pretrain("base"), cell)).run_ids("corpus")["p"]


def test_rows_are_filled_up_to_what_the_mesh_divides_and_nothing_of_it_is_left():
    two = make_mesh({"data": 2}, jax.devices()[:2])
    shapes, double = [], jax.jit(lambda b: {"x": 2 * b["x"], "y": b["x"].sum(-1)})
    with jax.set_mesh(two):

        def of(batch):
            shapes.append(batch["x"].shape)
            return double(batch)

        x = np.arange(21.0).reshape(7, 3)
        got = joined(map_rows(of, {"x": x}, 3, two))
    assert shapes == [(4, 3), (4, 3)]
    np.testing.assert_array_equal(got["x"], 2 * x)
    np.testing.assert_array_equal(got["y"], x.sum(-1))


def test_references_are_scored_a_micro_batch_at_a_time(mesh):
    rows = {k: np.arange(7.0) for k in rankings.INPUTS}
    sizes = []

    def of(batch):
        sizes.append(len(batch["ranks"]))
        return batch["last"]

    ctx = SimpleNamespace(runtime=Runtime(mesh, AXES, accumulate=2))
    np.testing.assert_array_equal(rankings.over_rows(ctx, of, rows, 4), np.arange(7.0))
    assert sizes == [2, 2, 2, 2]


def test_held_out_text_and_next_words_are_the_same_on_two_devices(corpus, mesh):
    """Batches that two devices do not divide."""
    cfg = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab, max_positions=40)
    params = noisy_params(cfg)
    prompts = np.array([[0, 5, 6], [7, 8, 9], [0, 0, 4]], np.int32)

    def measured(mesh):
        runtime = Runtime(mesh, AXES)
        with jax.set_mesh(mesh):
            rows = heldout_rows(params, cfg, corpus, runtime, batch=3)
            words = likeliest(params, cfg, corpus.tokenizer, prompts, runtime, top=3)
        return rows, words

    one, two = measured(mesh), measured(make_mesh({"data": 2}, jax.devices()[:2]))
    for a, b in zip(one[0], two[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for a, b in zip(one[1], two[1], strict=True):
        assert [word for word, _ in a] == [word for word, _ in b]
        np.testing.assert_allclose([p for _, p in a], [p for _, p in b], rtol=1e-5)
