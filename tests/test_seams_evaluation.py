"""An evaluation cell of policies whose probabilities are known reports what follows from them."""

import math
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
import tiny_policies as tiny
from tiny_models import mesh
from tiny_policies import TASK, Bench, compiled, policy, scores

from rlhf_jax.data.tokenizer import EOS
from rlhf_jax.kinds import Ensemble, Evaluate

__all__ = ["compiled", "mesh"]
N, WARM = 100, 0.7  # more prompts than are sampled at a time
SIDES = ("before", "after")
WORST = Ensemble("worst", members=("rm", "wide-rm"), combine="worst")


class Evaluated:
    """What a cell reported, beside the tokens that it sampled and the prompts that it must have
    had."""

    def __init__(self, bench, cell, **more):
        ctx = bench.run(cell, **more)
        self.found = ctx.folder.result("evaluation")
        self.kept = dict(np.load(ctx.folder.results / "responses.npz"))
        self.prompts = tiny.prompts("test", cell.prompts, cell.seed)
        self.tokens = {s: self.kept[f"tokens_{s}"] for s in SIDES}
        self.mask = {s: tiny.up_to_eos(t) for s, t in self.tokens.items()}
        self.texts = {s: bench.decoded(t) for s, t in self.tokens.items()}
        self.before = {s: tiny.before_each(self.prompts, t) for s, t in self.tokens.items()}
        self.gold = {s: np.array(tiny.gold(self.prompts, t)) for s, t in self.texts.items()}
        length = {s: m.sum(-1).astype(int) for s, m in self.mask.items()}
        self.last = {s: self.tokens[s][np.arange(N), length[s] - 1] for s in SIDES}
        self.length = length


@pytest.fixture(scope="module")
def bench(mesh, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("evaluation"), mesh, "a", "b", "near", "rm", "wide-rm")


@pytest.fixture(scope="module")
def warm(bench):
    """From policy a to policy b, which begin with other words, by the worst of two rewards."""
    cell = Evaluate(
        "warm",
        before="a",
        after="b",
        reward="worst",
        task=TASK,
        prompts=N,
        temperature=WARM,
        modes="tiny_policies:first_words",
    )
    return Evaluated(bench, cell, beside=(WORST,))


@pytest.fixture(scope="module")
def greedy(bench):
    """From policy a to one that begins alike, without chance."""
    cell = Evaluate(
        "greedy",
        before="a",
        after="near",
        reward="wide-rm",
        task=TASK,
        prompts=N,
        temperature=0.0,
        seed=3,
    )
    return Evaluated(bench, cell)


def test_each_side_answers_the_prompts_of_the_test_split_with_its_own_policy(warm):
    for side, name in (("before", "a"), ("after", "b")):
        for prompt, text in zip(warm.prompts, warm.texts[side], strict=True):
            assert text.split()[0] == tiny.FIRST[name][prompt.split()[-1]]
        np.testing.assert_array_equal(warm.kept[f"mask_{side}"], warm.mask[side])
    last = [p.split()[-1] for p in warm.prompts]
    later = [i for i in range(N - 64) if last[i] == last[i + 64]]
    assert any((warm.tokens["before"][i] != warm.tokens["before"][i + 64]).any() for i in later)
    shown = {s["prompt"] for s in warm.found["samples"]}
    assert shown < set(warm.prompts) and len(shown) == 12
    for s in warm.found["samples"]:
        i = warm.prompts.index(s["prompt"])
        for side in SIDES:
            assert s[side] == warm.texts[side][i]
            assert s[f"gold_{side}"] == pytest.approx(warm.gold[side][i])


def test_gold_scores_are_of_each_sides_texts_and_the_gain_is_after_less_before(warm):
    for side in SIDES:
        np.testing.assert_allclose(warm.kept[f"gold_{side}"], warm.gold[side])
        np.testing.assert_allclose(warm.found["gold"][side], warm.gold[side])
        assert warm.gold[side].min() > 5  # all fit: no response stands beside another's prompt
        assert warm.found[f"gold_{side}"] == pytest.approx(warm.gold[side].mean())
    gain = warm.gold["after"] - warm.gold["before"]
    assert abs(gain.mean()) > 0.05
    assert warm.found["gain"] == pytest.approx(gain.mean())
    low, high = warm.found["gain_interval"]
    error = 1.96 * gain.std() / math.sqrt(N)
    assert (low, high) == pytest.approx((gain.mean() - error, gain.mean() + error), abs=error / 4)
    won = np.sign(gain) / 2 + 0.5
    assert warm.found["win_rate"] == pytest.approx(won.mean()) and abs(won.mean() - 0.5) > 0.05
    longer = warm.length["after"] - warm.length["before"]
    _, intercept = np.polyfit(longer, gain, 1)
    assert warm.found["gain_at_equal_length"] == pytest.approx(intercept)
    assert (warm.found["win_rate_length_controlled"] - 0.5) * (won.mean() - 0.5) > 0


@pytest.mark.parametrize("run", ["warm", "greedy"])
def test_kl_is_of_the_samples_at_their_temperature_from_the_policy_before(run, request):
    done = request.getfixturevalue(run)
    after, warmth = ("b", WARM) if run == "warm" else ("near", 1.0)
    for side, name in (("before", "a"), ("after", after)):
        own, first = (
            policy(n).log_probs(done.before[side], done.tokens[side], warmth) for n in (name, "a")
        )
        expected = ((own - first) * done.mask[side]).sum(-1)
        np.testing.assert_allclose(done.kept[f"log_ratio_{side}"], expected, rtol=1e-4, atol=1e-3)
    assert done.found["kl"] == pytest.approx(expected.mean(), rel=1e-4) and done.found["kl"] > 0.1
    low, high = done.found["kl_interval"]
    assert low < done.found["kl"] < high


@pytest.mark.parametrize("run", ["warm", "greedy"])
def test_each_side_is_described_by_its_own_samples(run, request):
    done = request.getfixturevalue(run)
    after, warmth = ("b", WARM) if run == "warm" else ("near", 1.0)
    found = done.found
    for side, name in (("before", "a"), ("after", after)):
        tokens, mask = done.tokens[side], done.mask[side]
        entropy = policy(name).entropy(done.before[side], warmth)
        assert found[f"entropy_{side}"] == pytest.approx(
            (entropy * mask).sum() / mask.sum(), rel=1e-4
        )
        rows = [row[:n].tolist() for row, n in zip(tokens, done.length[side], strict=True)]
        for n in (1, 2):
            grams = [tuple(r[i : i + n]) for r in rows for i in range(len(r) - n + 1)]
            assert found[f"distinct_{n}_{side}"] == pytest.approx(len(set(grams)) / len(grams))
        assert found[f"similarity_{side}"] == pytest.approx(similarity(rows))
        assert found[f"length_{side}"] == pytest.approx(np.mean([len(r) for r in rows]))
        assert found[f"stop_rate_{side}"] == pytest.approx(np.mean([r[-1] == EOS for r in rows]))


def similarity(rows):
    """The mean over pairs of the share of bigrams that two rows have in common."""
    bags = [Counter(pairwise(r)) for r in rows]
    found = []
    for i, j in combinations(range(len(rows)), 2):
        size = bags[i].total() + bags[j].total()
        shared = sum(min(n, bags[j][gram]) for gram, n in bags[i].items())
        found.append(2 * shared / size if size else float(rows[i] == rows[j]))
    return np.mean(found)


def test_several_responses_to_a_prompt_are_drawn_anew(warm, greedy):
    """Without chance they are equal; with it they are as alike as four samples drawn here."""
    for side in SIDES:
        assert (
            greedy.found[f"similarity_same_prompt_{side}"] == 1 > greedy.found[f"similarity_{side}"]
        )
    rng = np.random.default_rng(0)
    for side, name in (("before", "a"), ("after", "b")):
        drawn = []
        for last in np.repeat(tiny.last_tokens(warm.prompts[:64]), 6):
            rows = [sampled(policy(name), last, rng) for _ in range(4)]
            drawn.append(similarity(rows))
        assert warm.found[f"similarity_same_prompt_{side}"] == pytest.approx(
            np.mean(drawn), abs=0.06
        )


def sampled(of, token, rng):
    row = []
    while len(row) < 6 and token != EOS:
        token = rng.choice(tiny.VOCAB, p=np.exp(of.log_softmax(WARM)[tiny.classes()[token]]))
        row.append(int(token))
    return row


def test_greedy_sides_take_the_likeliest_words(greedy):
    for side, name in (("before", "a"), ("after", "near")):
        best = policy(name).logits.argmax(-1)[tiny.classes()[greedy.before[side]]]
        inside = greedy.mask[side] > 0
        np.testing.assert_array_equal(greedy.tokens[side][inside], best[inside])


def test_the_proxy_is_the_reward_of_the_last_token_and_an_ensembles_is_its_worst(warm, greedy):
    for side in SIDES:
        each = np.stack([scores(n).of(warm.last[side]) for n in WORST.members])
        assert len(set(each.argmin(0))) == 2  # neither is always the worst
        np.testing.assert_allclose(warm.kept[f"proxy_{side}"], each.min(0), rtol=1e-4, atol=1e-5)
        assert warm.found[f"proxy_{side}"] == pytest.approx(each.min(0).mean(), rel=1e-4)
        expected = scores("wide-rm").of(greedy.last[side])
        np.testing.assert_allclose(greedy.kept[f"proxy_{side}"], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_on_held_out_text_and_its_calibration_are_each_sides(bench, warm):
    nats, size = {}, 0
    for side, name in (("before", "a"), ("after", "b")):
        total, weight, size, sure, right = 0.0, 0, 0, [], []
        for batch in bench.corpus.heldout(8):
            used = batch["weights"] > 0
            lp = policy(name).log_softmax()[tiny.classes()[batch["tokens"][used]]]
            at = batch["targets"][used]
            total -= lp[np.arange(len(at)), at].sum()
            weight, size = weight + used.sum(), size + batch["bytes"].sum()
            sure.append(np.exp(lp.max(-1)))
            best = np.abs(lp - lp.max(-1, keepdims=True)) < 1e-6
            right.append((best[np.arange(len(at)), at], best.sum(-1)))
        nats[side] = total
        assert warm.found[f"perplexity_{side}"] == pytest.approx(math.exp(total / weight), rel=1e-3)
        assert warm.found[f"bits_per_byte_{side}"] == pytest.approx(
            total / math.log(2) / size, rel=1e-4
        )
        found, sure = warm.found[f"calibration_{side}"], np.concatenate(sure)
        assert found["confidence"] == pytest.approx(sure.mean(), rel=1e-4)
        assert found["n"] == weight == bench.corpus.cfg.heldout_tokens
        came, of = (np.concatenate(x) for x in zip(*right, strict=True))
        alone = (
            came & (of == 1)
        ).mean()  # of equally likely words one may be taken, or all in part
        assert alone - 1e-9 <= found["accuracy"] <= came.mean() + 1e-9 and alone > 0
        error = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in found["bins"]) / weight
        assert found["expected_calibration_error"] == pytest.approx(error)
    tax = warm.found["tax"]
    gap = nats["after"] - nats["before"]
    assert tax["nats_per_token"] == pytest.approx(gap / weight, rel=1e-3) and abs(gap) > 1
    assert tax["bits_per_byte"] == pytest.approx(gap / math.log(2) / size, rel=1e-3)


def test_modes_and_likeliest_next_words_are_each_sides(bench, warm):
    for side, name in (("before", "a"), ("after", "b")):
        counts = Counter(tiny.FIRST[name][p.split()[-1]] for p in warm.prompts)
        got = {k: v for k, v in warm.found["modes"][side]["counts"].items() if v}
        assert got == counts
        assert warm.found["next_words"][side]
        for prompt, words in warm.found["next_words"][side].items():
            ids = bench.corpus.tokenizer.encode(prompt)
            p = np.exp(policy(name).log_softmax()[tiny.classes()[ids[-1]]])
            assert [x for _, x in words] == pytest.approx(np.sort(p)[::-1][: len(words)], rel=1e-3)
            piece = bench.corpus.tokenizer.piece(int(p.argmax()))
            assert words[0][0] == piece
