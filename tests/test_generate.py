"""Guarantees of `rlhf_jax.model.sampler`."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
from scipy.stats import chi2
from tiny_models import GQA, LEARNED, full_logits, log_softmax, mesh, noisy_params

from rlhf_jax.model import sampler
from rlhf_jax.model.sampler import EOS, PAD, generate
from rlhf_jax.model.scoring import join, response_log_probs
from rlhf_jax.model.sharding import AXES, place_batch

__all__ = ["mesh"]
CFG = dataclasses.replace(GQA, layers=1)
P, R = 6, 7


def left_padded(lengths, width, vocab=64, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.zeros((len(lengths), width), np.int32)
    for row, n in zip(rows, lengths, strict=True):
        row[width - n :] = rng.integers(3, vocab, n)
    return rows


@pytest.fixture(scope="module")
def prompts(mesh):
    return left_padded([6, 1, 4, 5], P)


@pytest.fixture(scope="module")
def sample(mesh):
    """Compiled once; the temperature is an argument."""
    compiled = jax.jit(
        lambda params, prompts, key, temperature, samples: generate(
            params, CFG, prompts, key, length=R, temperature=temperature, axes=AXES, samples=samples
        ),
        static_argnums=4,
    )

    def run(prompts, temperature=0.7, seed=0, samples=1):
        rows = place_batch({"p": prompts}, mesh)["p"]
        return compiled(noisy_params(CFG), rows, jax.random.key(seed), temperature, samples)

    return run


def test_log_probs_equal_teacher_forcing_of_left_padded_prompts(prompts, sample, mesh):
    out = sample(prompts)
    rows = join(place_batch({"p": prompts}, mesh)["p"], out.tokens_BR, out.mask_BR)
    forced = jax.jit(lambda p, rows, t: response_log_probs(p, CFG, rows, R, t, AXES))
    log_probs, entropy = forced(noisy_params(CFG), rows, 0.7)
    mask = np.asarray(out.mask_BR)
    np.testing.assert_allclose(out.log_probs_BR * mask, log_probs * mask, atol=1e-5)
    # Once more from numpy's softmax over the whole forward pass, without the sampler's own helpers.
    tokens = np.concatenate([prompts, out.tokens_BR], 1)
    segments = np.concatenate([prompts != PAD, mask > 0], 1).astype(np.int32)
    positions = np.maximum(np.cumsum(segments, 1) - 1, 0)
    full = full_logits(noisy_params(CFG), CFG, tokens, segments, positions)
    lp_BTV = log_softmax(np.asarray(full)[:, P - 1 : -1] / 0.7)
    picked = np.take_along_axis(lp_BTV, np.asarray(out.tokens_BR)[..., None], -1)[..., 0]
    np.testing.assert_allclose(out.log_probs_BR, picked * mask, atol=1e-5)
    plogp = -(np.exp(lp_BTV) * lp_BTV).sum(-1)
    np.testing.assert_allclose(entropy * mask, plogp * mask, atol=1e-4)


def test_greedy_equals_an_argmax_loop_over_full_forwards(prompts, sample):
    out = sample(prompts, temperature=0.0)
    params = noisy_params(CFG)
    tokens = np.concatenate([prompts, np.zeros((4, R), np.int32)], 1)
    segments = (tokens != PAD).astype(np.int32)
    log_probs = np.zeros((4, R))
    for t in range(R):
        positions = np.maximum(np.cumsum(segments, 1) - 1, 0)
        at = np.asarray(full_logits(params, CFG, tokens, segments, positions))[:, P + t - 1]
        alive = segments[:, P - 1 if t == 0 else P + t - 1] > 0
        alive &= ~np.any(tokens[:, P : P + t] == EOS, 1)
        tokens[:, P + t] = np.where(alive, at.argmax(-1), PAD)
        segments[:, P + t] = alive
        log_probs[:, t] = np.where(alive, log_softmax(at).max(-1), 0)
    assert np.array_equal(out.tokens_BR, tokens[:, P:])
    np.testing.assert_allclose(out.log_probs_BR, log_probs, atol=1e-5)  # at temperature 1
    np.testing.assert_array_equal(out.mask_BR, segments[:, P:])


def test_samples_that_share_a_prefill_equal_repeated_prompts(prompts, sample):
    shared, repeated = sample(prompts, samples=3), sample(np.repeat(prompts, 3, 0))
    np.testing.assert_array_equal(shared.tokens_BR, repeated.tokens_BR)
    np.testing.assert_array_equal(shared.mask_BR, repeated.mask_BR)
    np.testing.assert_allclose(shared.log_probs_BR, repeated.log_probs_BR, atol=1e-5)
    rows = [tuple(r) for r in np.asarray(shared.tokens_BR)]
    assert all(len({*rows[i : i + 3]}) == 3 for i in range(0, 12, 3))  # samples differ


def test_seeds_differ_and_repeat(prompts, sample):
    a, b, again = sample(prompts, seed=1), sample(prompts, seed=2), sample(prompts, seed=1)
    assert np.array_equal(a.tokens_BR, again.tokens_BR)
    assert not np.array_equal(a.tokens_BR, b.tokens_BR)


def test_tokens_are_drawn_with_the_probabilities_of_the_model(mesh):
    """Pearson's chi-square over 8192 first and second tokens at temperature 0.7."""
    cfg = dataclasses.replace(CFG, vocab=8)
    params, prompt, n = noisy_params(cfg), np.array([[3, 5, 4]], np.int32), 8192
    out = jax.jit(
        lambda p, x, k: generate(p, cfg, x, k, length=2, temperature=0.7, axes=AXES, samples=n)
    )(params, place_batch({"p": prompt}, mesh)["p"], jax.random.key(0))
    tokens = np.asarray(out.tokens_BR)

    def expected(context):
        ids = np.array([context], np.int32)
        at = full_logits(params, cfg, ids, np.ones_like(ids), np.arange(len(context))[None])
        return np.exp(log_softmax(np.asarray(at)[0, -1] / 0.7))

    def statistic(drawn, p):
        counts = np.bincount(drawn, minlength=8)
        return np.sum((counts - len(drawn) * p) ** 2 / (len(drawn) * p))

    p = expected([3, 5, 4])
    assert statistic(tokens[:, 0], p) < chi2.ppf(0.9999, 7)
    first = Counter(t for t in tokens[:, 0].tolist() if t != EOS).most_common(1)[0][0]
    after = tokens[tokens[:, 0] == first, 1]
    assert len(after) > 500 and statistic(after, expected([3, 5, 4, first])) < chi2.ppf(0.9999, 7)
    np.testing.assert_allclose(
        log_softmax(np.asarray(out.logits_BV)[0] / 0.7), np.log(p), atol=1e-5
    )


# --- stopping -------------------------------------------------------------------------------------


def stops_at(position):
    """Parameters of LEARNED that say token 9 everywhere, and EOS after the input at `position`."""
    params = jax.tree.map(np.zeros_like, noisy_params(LEARNED))
    params["final_norm"] += 1.0
    params["positions"][:, 0] = 1.0
    params["positions"][position, :2] = 0.0, 1.0
    params["unembed"][0, 9] = params["unembed"][1, EOS] = 30.0
    return params


@pytest.fixture(scope="module")
def counted(mesh):
    """Samples of a model that stops after a position, and the number of forward passes taken."""
    calls = []
    real = sampler.forward

    def spy(params, cfg, tokens, *rest, **kw):
        jax.debug.callback(lambda: calls.append(tokens.shape))
        return real(params, cfg, tokens, *rest, **kw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "forward", spy)
        compiled = jax.jit(
            lambda params, prompts: generate(
                params, LEARNED, prompts, jax.random.key(0), length=6, temperature=1.0, axes=AXES
            )
        )

        def run(position, lengths):
            prompts = place_batch({"p": left_padded(lengths, 8)}, mesh)["p"]
            calls.clear()
            out = jax.device_get(compiled(stops_at(position), prompts))
            jax.effects_barrier()
            return out, len(calls) - 1

        yield run


def test_rows_stop_at_eos_and_are_filled_with_pad(counted):
    """EOS first, in the middle, last and never."""
    out, _ = counted(7, [8, 6, 3, 2])
    expected = [[2, 0, 0, 0, 0, 0], [9, 9, 2, 0, 0, 0], [9, 9, 9, 9, 9, 2], [9, 9, 9, 9, 9, 9]]
    np.testing.assert_array_equal(out.tokens_BR, expected)
    np.testing.assert_array_equal(out.mask_BR, np.array(expected) != PAD)
    assert np.all(out.log_probs_BR[np.array(expected) == PAD] == 0)
    assert np.all(np.abs(out.log_probs_BR) < 1e-3)


def test_an_early_exit_gives_what_the_full_length_gives(counted):
    early, short = counted(7, [8, 6, 7, 6])
    full, long = counted(7, [8, 6, 7, 2])  # the last row never stops
    assert (short, long) == (3, 6)
    for a, b in zip(early, full, strict=True):
        np.testing.assert_array_equal(a[:3], b[:3])
