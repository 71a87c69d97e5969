"""Cells that sample for people or for other cells: comparisons, feedback and the best of n say
what the labeller's rule says of the very responses, whatever the policy was."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import tiny_policies as tiny
from tiny_models import mesh
from tiny_policies import TASK, Bench, compiled, policy

from rlhf_jax.data.annotators import criticise, varied_sentiment
from rlhf_jax.data.feedback import Comparison, Correction, Critique, Demonstration, read
from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.kinds import SFT, BestOfN, Compare, Feedback, TaskConfig

__all__ = ["compiled", "mesh"]
COLD = 0.05  # here the two likeliest words of a state, equally likely, are all that is ever said
ASKED = {"policy": "a", "task": TASK, "prompts": 80, "heldout_prompts": 10, "temperature": COLD}
SENTIMENT = TaskConfig(8, 6, "tiny_policies:prompts", "rlhf_jax.data.annotators:varied_sentiment")
SPLITS = {"train": 80, "validation": 10}


@pytest.fixture(scope="module")
def bench(mesh, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("sampling"), mesh, "a", "b", "endless", "wide-rm")


def said_by(name, prompt, response):
    """Whether the policy says this when it is cold."""
    words = [prompt.split()[-1], *response.split()]
    if words[1] != tiny.FIRST[TABLE_OF[name]][words[0]]:
        return False
    ids = [tiny.word_ids()[w] for w in words]
    best = policy(name).log_softmax(COLD)[tiny.classes()[ids[1:-1]], ids[2:]]
    return bool((best > np.log(0.4)).all())


TABLE_OF = {"a": "a", "b": "b", "near": "a", "endless": "a"}


# --- comparisons ----------------------------------------------------------------------------------


COMPARE = Compare("plain", **ASKED, k=4, noise=0.0)


def compared(bench, **options):
    """(records by split, arrays by split) of a compare cell."""
    ctx = bench.run(dataclasses.replace(COMPARE, **options))
    records = read(ctx.folder.results / "comparisons.jsonl", Comparison)
    assert len(records) == sum(SPLITS.values())
    arrays = {s: dict(np.load(ctx.folder.results / f"{s}.npz")) for s in SPLITS}
    return {"train": records[:80], "validation": records[80:]}, arrays


@pytest.fixture(scope="module")
def ranked(bench):
    return compared(bench)


def test_without_noise_the_ranks_are_the_order_of_gold(bench, ranked):
    """The best has rank 1, equal ones share a rank; prompts are of their split, responses of the
    policy."""
    records, arrays = ranked
    for split, n in SPLITS.items():
        assert [r.prompt for r in records[split]] == tiny.prompts(split, n, 0)
        data = arrays[split]
        for i, record in enumerate(records[split]):
            asked = [record.prompt] * 4
            gold = tiny.gold(asked, record.responses)
            better = [sum(g > x + 1e-9 for g in sorted(set(gold))) for x in gold]
            assert list(record.ranking) == [1 + b for b in better] == data["ranks"][i].tolist()
            np.testing.assert_allclose(data["gold"][i], gold)
            assert bench.decoded(data["responses"][i]) == list(record.responses)
            np.testing.assert_array_equal(data["mask"][i], tiny.up_to_eos(data["responses"][i]))
            prompt = data["prompts"][i]
            assert bench.decoded([prompt]) == [record.prompt]
            assert all(said_by("a", record.prompt, r) for r in record.responses)
    report = bench.context(bench.study(COMPARE), "plain").folder.result("compare")
    gold = np.concatenate([arrays[s]["gold"] for s in SPLITS])
    assert report["gold_mean"] == pytest.approx(gold.mean())
    assert report["gold_spread_within_prompt"] == pytest.approx(gold.std(axis=1).mean())


def test_no_prompt_has_the_random_numbers_of_another(ranked):
    """The splits are longer than what is sampled at a time; equal openings are answered
    otherwise."""
    train, held = ranked[0]["train"], ranked[0]["validation"]
    for some, others in ((train[:-1], train[1:]), (train[:16], train[64:]), (train[:10], held)):
        alike = [
            a.responses == b.responses
            for a, b in zip(some, others, strict=True)
            if a.prompt.split()[-1] == b.prompt.split()[-1]
        ]
        assert alike and sum(alike) < len(alike) / 2
    assert len({r for record in train for r in record.responses}) > 20
    assert np.mean([len(set(record.responses)) for record in train]) > 2


def test_annotators_see_length_and_have_tastes_and_noise(bench, ranked):
    plain, arrays = ranked
    length = arrays["train"]["mask"].sum(-1)
    records, _ = compared(bench, name="long", length_bias=100.0)
    for i, record in enumerate(records["train"]):
        assert record.responses == plain["train"][i].responses  # the same samples
        first = np.argmin(record.ranking)
        assert length[i, first] == length[i].max()
    chance = {}
    for name, option in {
        "noise": {"noise": 100.0, "annotators": 1},
        "disagreement": {"disagreement": 100.0, "annotators": 1},
        "one": {"noise": 0.3, "annotators": 1},
        "many": {"noise": 0.3, "annotators": 101},
    }.items():
        records, other = compared(bench, name=name, **option)
        np.testing.assert_array_equal(other["train"]["gold"], arrays["train"]["gold"])
        ranks, gold = other["train"]["ranks"], other["train"]["gold"]
        i, j = np.triu_indices(4, 1)
        right = (ranks[:, i] - ranks[:, j]) * (gold[:, j] - gold[:, i]) > 0
        chance[name] = right[gold[:, i] != gold[:, j]].mean()
        if option["annotators"] == 1:
            for record in records["train"]:  # one text has one rank, and two texts have two
                pairs = set(zip(record.responses, record.ranking, strict=True))
                texts, places = map(set, zip(*pairs, strict=True))
                assert len(pairs) == len(texts) == len(places) == max(record.ranking)
        if name in ("noise", "disagreement"):  # each prompt has draws of its own
            assert not (ranks[:10] == other["validation"]["ranks"]).all()
            assert not (ranks[:16] == ranks[64:]).all()
    assert max(abs(chance[name] - 0.5) for name in ("noise", "disagreement")) < 0.15
    assert chance["many"] > 0.9 > chance["one"] + 0.02


# --- feedback -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gives", ["corrections", "critiques"])
def test_feedback_follows_the_labellers_rule(bench, gives):
    """Words and edits go by sentiment, verdicts by the task's gold score, which here dislikes
    repetition."""
    ctx = bench.run(Feedback(gives, **{**ASKED, "task": SENTIMENT}, k=4, gives=gives, min_gold=0.1))
    data, good = {}, []
    for split, file in (("train", "records.jsonl"), ("validation", "heldout.jsonl")):
        data[split] = read(
            ctx.folder.results / file, Correction if gives == "corrections" else Critique
        )
        known = tiny.prompts(split, SPLITS[split], 0)
        for record in data[split]:
            assert record.prompt in known and said_by("a", record.prompt, record.response)
            rule = criticise(record.prompt, record.response, 0.1)
            if gives == "corrections":
                assert record.edited == rule.revision
                continue
            (score,) = varied_sentiment([record.prompt], [record.response])
            good.append(score >= 0.1)
            assert record.verdict == ("good" if good[-1] else "bad")
            assert (record.critique, record.revision) == (rule.critique, rule.revision)
        if gives == "critiques":
            assert [r.prompt for r in data[split]] == [p for p in known for _ in range(4)]
    found = ctx.folder.result("feedback")
    assert (found["train_records"], found["validation_records"]) == tuple(map(len, data.values()))
    if gives == "critiques":
        assert found["good"] == pytest.approx(np.mean(good)) and 0.1 < np.mean(good) < 0.9
        by_sentiment = [criticise(r.prompt, r.response, 0.1).verdict for r in data["train"]]
        assert by_sentiment != [r.verdict for r in data["train"]]


# --- the best of n --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def best(bench):
    """With a reward whose favourites are not the labeller's."""
    cell = BestOfN(
        "best",
        policy="b",
        reward="tiny_policies:proxy",
        task=TASK,
        prompts=9,
        n=6,
        temperature=COLD,
    )
    ctx = bench.run(cell)
    samples = dict(np.load(ctx.folder.results / "samples.npz"))
    records = read(ctx.folder.results / "demonstrations.jsonl", Demonstration)
    return ctx, ctx.folder.result("best_of_n"), samples, records


def test_the_best_by_the_proxy_is_shown_for_its_own_prompt(best):
    _, found, samples, records = best
    asked = tiny.prompts("test", 9, 0)
    assert [r.prompt for r in records] == asked and found["demonstrations"] == 9
    for i, record in enumerate(records):
        at = samples["proxy"][i].argmax()
        assert tiny.proxy([record.prompt], [record.response]) == [samples["proxy"][i, at]]
        (gold,) = tiny.gold([record.prompt], [record.response])
        assert gold == pytest.approx(samples["gold"][i, at]) and gold > 5
        assert said_by("b", record.prompt, record.response)
    assert (samples["gold"] > 5).all() and len(np.unique(samples["gold"])) > 9


def test_the_curve_is_the_mean_over_all_subsets_of_the_samples(best):
    _, found, samples, _ = best
    proxy, gold = samples["proxy"], samples["gold"]
    assert [r["n"] for r in found["curve"]] == [1, 2, 4, 6]
    for at, row in enumerate(found["curve"]):
        chosen = np.zeros((2, 9))
        for p in range(9):
            each = []
            for some in map(list, combinations(range(6), row["n"])):
                top = proxy[p, some] == proxy[p, some].max()
                each.append((proxy[p, some][top].mean(), gold[p, some][top].mean()))
            chosen[:, p] = np.mean(each, axis=0)
        assert row["proxy"] == pytest.approx(chosen[0].mean(), abs=1e-5)
        assert row["gold"] == pytest.approx(chosen[1].mean())
        assert row["gold_gain"] == pytest.approx((chosen[1] - gold.mean(1)).mean())
        np.testing.assert_allclose(found["gold_by_prompt"][at], chosen[1], atol=1e-4)
        for name in ("proxy", "gold", "gold_gain"):
            low, high = row[f"{name}_interval"]
            assert low - 1e-9 <= row[name] <= high + 1e-9
        bound = np.log(row["n"]) - (row["n"] - 1) / row["n"]
        assert row["kl"] == pytest.approx(bound)
    assert found["length"] == pytest.approx(samples["lengths"].mean())
    assert 1 < samples["lengths"].mean() < 6 and 0.3 < found["distinct"] < 1


def test_the_best_of_a_reward_model_has_the_highest_score_of_its_last_token(bench):
    """Of the training prompts if the cell says so, which a fine-tuned model can then learn from."""
    cell = BestOfN(
        "best-rm",
        policy="endless",
        reward="wide-rm",
        task=TASK,
        prompts=9,
        n=70,
        split="train",
        temperature=COLD,
    )
    ctx = bench.run(cell)
    proxy = np.load(ctx.folder.results / "samples.npz")["proxy"]
    assert not (proxy[:, :6] == proxy[:, 64:]).all()  # more than are sampled at a time, drawn anew
    records = read(ctx.folder.results / "demonstrations.jsonl", Demonstration)
    assert [r.prompt for r in records] == tiny.prompts("train", 9, 0)
    last = [tiny.word_ids()[r.response.split()[-1]] for r in records]
    np.testing.assert_allclose(tiny.scores("wide-rm").of(last), proxy.max(1), atol=1e-4)
    assert (proxy.max(1) > proxy.min(1)).any()
    taught = bench.run(
        SFT("taught", base="b", records="best-rm", task=TASK, batch=2, epochs=1), beside=(cell,)
    )
    assert read(taught.folder.results / "demonstrations.jsonl") == records


def test_openings_of_sentences_are_those_of_their_split(bench):
    """Where a task names no prompts."""
    task = TaskConfig(5, 6, gold="tiny_policies:last_word")
    cell = Compare("openings", policy="a", task=task, prompts=8, heldout_prompts=8, k=2, seed=4)
    ctx = bench.run(cell)
    records = read(ctx.folder.results / "comparisons.jsonl", Comparison)
    for split, some in (("train", records[:8]), ("validation", records[8:])):
        known = prompts_from(bench.corpus, split, 8, 5, 4, 6)
        assert [r.prompt for r in some] == [p.prompt for p in known]
