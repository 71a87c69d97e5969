"""Guarantees: a new architecture is one file, and a new objective one function, that a study names
as MODULE:NAME. Nothing else of the package is edited for them."""

import dataclasses
import math
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_architecture import SMOOTHING, Convolution, Z
from tiny_models import GQA, full_logits, log_softmax, mesh, packed_batch, same_bits, tiny_corpus
from tiny_models import noisy_params as noisy_transformer
from tiny_policies import compiled

from rlhf_jax.cost.flops import flops_per_token, param_counts
from rlhf_jax.cost.memory import sampling_bytes, training_bytes
from rlhf_jax.kinds import PPO, SFT, Compare, Pretrain, Reward, TaskConfig
from rlhf_jax.kinds.context import Context, read_model
from rlhf_jax.model import decays, has_scalar_head, init, initialised
from rlhf_jax.model.architecture import architecture
from rlhf_jax.model.sampler import generate
from rlhf_jax.model.scoring import join, response_log_probs
from rlhf_jax.model.sharding import AXES, make_mesh, place_batch
from rlhf_jax.objectives import language_modelling
from rlhf_jax.objectives.named import named_objective
from rlhf_jax.placement.mesh import check_placement
from rlhf_jax.study import CorpusConfig, Study
from rlhf_jax.study.config import ConfigError, ModelConfig, OptimConfig
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.loading import _check_callables
from rlhf_jax.study.runs import Runs
from rlhf_jax.train import Runtime, init_state, make_train_step
from rlhf_jax.train.loop import keep_model
from rlhf_jax.worker import run_cell

__all__ = ["compiled", "mesh"]
NAME, NAMED = "tiny_architecture:Convolution", "tiny_architecture:smoothed"
SMALL = ModelConfig(
    layers=2, width=16, heads=2, ff=24, vocab=64, max_positions=64, architecture=NAME
)
D, F, L, V = 16, 24, 2, 64
CORPUS = CorpusConfig(vocab=V, seq_len=32)


def noisy(cfg):
    """Parameters none of which is as `init` leaves it."""
    rng = np.random.default_rng(0)
    made = jax.device_get(init(cfg, jax.random.key(0)))
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), made)


# --- what follows from a description -------------------------------------------------------------


def test_parameters_and_flops_are_counted_from_the_description():
    counts = param_counts(SMALL)
    matrices = 3 * L * D * F
    assert counts["matmul"] == matrices + V * D and counts["feed_forward"] == matrices
    assert counts["total"] == matrices + V * D + L * 3 * F + (L + 1) * D
    assert counts["non_embedding"] == counts["total"] - V * D
    assert flops_per_token(SMALL, 999) == 6 * (matrices + V * D)  # no attention, whatever the row
    params = init(SMALL, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == counts["total"]
    blocks = params["blocks"]
    assert float(jnp.std(blocks["read"])) == pytest.approx(D**-0.5, rel=0.1)
    assert float(jnp.mean(blocks["taps"])) == pytest.approx(0.5, abs=0.15)
    assert (np.asarray(blocks["gain"]) == 1).all()
    mask = decays(SMALL, params)
    assert [k for k, d in mask["blocks"].items() if d] == ["open", "read", "write"]
    assert not mask["table"] and not mask["last_gain"]


def test_counting_a_model_does_not_import_jax():
    code = (
        "import sys; from rlhf_jax.cost.flops import flops_per_token; "
        "from rlhf_jax.study.config import ModelConfig; flops_per_token(ModelConfig(), 8); "
        "assert 'jax' not in sys.modules; from rlhf_jax.model import forward"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_its_parameters_are_born_in_parts_and_train_to_the_same_numbers(mesh):
    tokens, segments, positions = packed_batch(SMALL, [[16], [5, 7], [9], [2, 3]], 16)
    batch = {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "targets": np.roll(tokens, -1, 1),
        "weights": (segments > 0).astype(np.float32),
        "bytes": np.ones_like(tokens),
    }
    optim = OptimConfig(lr=1e-2, schedule="constant", warmup=0.0)
    losses, two = {}, make_mesh({"fsdp": 2}, devices=jax.devices()[:2])
    for name, on in (("one", mesh), ("two", two)):
        with jax.set_mesh(on):
            params = initialised(SMALL, jax.random.key(1), on)
            parts = {
                n: len({s.index for s in x.addressable_shards}) for n, x in params["blocks"].items()
            }
            step = make_train_step(
                lambda p, b: language_modelling(p, b, SMALL, AXES),
                optim,
                partial(decays, SMALL),
                AXES,
            )
            state, losses[name] = init_state(params, optim, 3), []
            for _ in range(3):
                state, metrics = step(state, place_batch(batch, on))
                losses[name].append(float(metrics["loss"]))
    assert parts == {"gain": 1, "read": 2, "open": 2, "taps": 1, "write": 2}
    np.testing.assert_allclose(losses["two"], losses["one"], atol=1e-5)
    assert losses["one"][2] < losses["one"][0]


def test_meshes_and_memory_follow_from_the_description():
    """It has no heads, whatever the configuration says."""
    study = Study("mesh", (Pretrain("base", model=SMALL, batch=4, tokens=1024),), CORPUS)
    check_placement(study, ["base"], {"data": 1, "fsdp": 4, "tensor": 4})
    with pytest.raises(ConfigError, match=r"base\.model\.ff = 24 does not divide over tensor = 16"):
        check_placement(study, ["base"], {"data": 1, "fsdp": 1, "tensor": 16})
    with pytest.raises(ConfigError, match=r"base\.model\.embed = 16 does not divide over fsdp = 3"):
        check_placement(study, ["base"], {"data": 1, "fsdp": 3, "tensor": 1})
    more = dataclasses.replace(SMALL, heads=4, head_width=64)
    assert training_bytes(SMALL, 4, 32, 1) == training_bytes(more, 4, 32, 1)
    assert sampling_bytes(SMALL, 4, 32, 1) == sampling_bytes(more, 4, 32, 1)


def test_a_model_with_a_parameter_called_policy_is_read_as_one_model(mesh, tmp_path):
    cfg = dataclasses.replace(SMALL, architecture="tiny_architecture:Renamed")
    runtime, folder = Runtime(mesh, AXES), CellFolder(tmp_path / "cell-0123456789")
    params = initialised(cfg, jax.random.key(0), mesh)
    with folder.held(), Heartbeat(folder) as beat:
        keep_model(folder, params, runtime, beat)
    assert same_bits(read_model(folder, cfg, runtime), params)


def test_what_it_samples_has_the_probability_that_scoring_gives(mesh):
    params = jax.tree.map(jnp.asarray, noisy(SMALL))
    prompts = np.random.default_rng(1).integers(3, V, (4, 5)).astype(np.int32)
    prompts[::2, :2] = 0
    prompts = place_batch({"p": prompts}, mesh)["p"]

    @jax.jit
    def both(params, prompts, key):
        out = generate(params, SMALL, prompts, key, length=6, temperature=0.7, axes=AXES, samples=2)
        tiled = prompts.at[jnp.arange(8) // 2].get(out_sharding=AXES.spec("batch", None))
        rows = join(tiled, out.tokens_BR, out.mask_BR)
        return out, response_log_probs(params, SMALL, rows, 6, 0.7, AXES)[0]

    out, scored = both(params, prompts, jax.random.key(0))
    np.testing.assert_allclose(out.log_probs_BR, scored * out.mask_BR, atol=1e-5)
    assert np.unique(np.asarray(out.tokens_BR), axis=0).shape[0] == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_architecture:Missing", "cannot be imported"),
        (
            "tiny_architecture:smoothed",
            r"has no describe; expected a class with the static methods",
        ),
    ],
)
def test_what_is_no_architecture_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        param_counts(dataclasses.replace(SMALL, architecture=name))


def test_an_architecture_whose_forward_takes_other_arguments_is_refused(monkeypatch):
    monkeypatch.setattr(Convolution, "forward", staticmethod(lambda params, tokens: None))
    with pytest.raises(ConfigError, match=r"forward.* takes .*expected a function of"):
        architecture(SMALL)


# --- as cells ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


TASK = TaskConfig(6, 5, gold="tiny_policies:proxy")


def test_a_study_trains_compares_rewards_and_improves_it(corpus, mesh, tmp_path):
    model = dataclasses.replace(SMALL, layers=1, vocab=corpus.cfg.vocab)
    optim = OptimConfig(lr=3e-3, weight_decay=0.0, final=0.0)
    cells = (
        Pretrain("base", model=model, batch=8, tokens=8 * 32 * 12, optim=OptimConfig(lr=2e-2)),
        Compare("compare", policy="base", task=TASK, prompts=8, heldout_prompts=4, k=2),
        Reward("rm", base="base", comparisons="compare", batch=4, optim=optim),
        PPO(
            "ppo",
            policy="base",
            reward="rm",
            task=TASK,
            iterations=1,
            batch=4,
            epochs=1,
            minibatches=1,
        ),
    )
    study = Study("s", cells, corpus.cfg)
    folders = Runs(tmp_path).folders(study, corpus.content_hash)
    for cell in cells:
        with Heartbeat(folders[cell.name]) as beat:
            ctx = Context(study, cell, folders, corpus, Runtime(mesh, AXES), beat)
            run_cell(ctx)
    base = folders["base"].result("heldout")
    assert (
        base["loss"] < math.log(corpus.cfg.vocab) and base["params"] == param_counts(model)["total"]
    )
    assert folders["rm"].result("report")["gain"] > 0
    assert folders["ppo"].result("ppo")["max_ratio_error"] < 1e-4
    params = ctx.language_model("ppo")  # from its checkpoint, without the critic
    assert not has_scalar_head(params)
    assert {n: p.shape for n, p in params["blocks"].items()} == {
        n: p.shape for n, p in Convolution.describe(model)["blocks"].items()
    }


def test_the_text_of_an_architecture_and_of_an_objective_is_in_run_ids(corpus, monkeypatch):
    plain = Pretrain("base", model=ModelConfig(vocab=corpus.cfg.vocab), tokens=8 * 32 * 32)
    other = dataclasses.replace(plain.model, architecture=NAME)
    ids = {}
    for name, cell in {
        "plain": plain,
        "architecture": dataclasses.replace(plain, model=other),
        "objective": dataclasses.replace(plain, objective=NAMED),
        "another": dataclasses.replace(plain, objective="tiny_architecture:alone"),
    }.items():
        ids[name] = Study("s", (cell,), corpus.cfg).run_ids("hash")["base"]
    assert len(set(ids.values())) == 4
    monkeypatch.setattr("tiny_architecture.SMOOTHING", 0.2)
    monkeypatch.setattr("tiny_architecture.TAPS", 4)
    for name, changed in (("architecture", {"model": other}), ("objective", {"objective": NAMED})):
        cell = dataclasses.replace(plain, **changed)
        assert Study("s", (cell,), corpus.cfg).run_ids("hash")["base"] != ids[name]


# --- objectives ----------------------------------------------------------------------------------


def test_a_named_objective_is_what_numpy_says(corpus, mesh):
    """Label smoothing and z-loss, as by hand."""
    cfg = dataclasses.replace(GQA, layers=1)
    params, T = noisy_transformer(cfg), 12
    tokens, segments, positions = packed_batch(cfg, [[12], [4, 6]], T)
    targets, weights = np.roll(tokens, -1, 1), (segments > 0).astype(np.float32)
    scores = np.asarray(full_logits(params, cfg, tokens, segments, positions), np.float64)
    lp = log_softmax(scores)
    picked = np.take_along_axis(lp, targets[..., None], -1)[..., 0]
    log_z = np.log(np.exp(scores).sum(-1))
    loss = -(1 - SMOOTHING) * picked - SMOOTHING * lp.mean(-1) + Z * log_z**2
    batch = {"tokens": tokens, "segments": segments, "positions": positions, "targets": targets}
    batch |= {"weights": weights, "bytes": np.ones_like(tokens)}
    of = jax.jit(named_objective(NAMED, "base.objective", cfg, AXES))
    total, weight, metrics = of(params, place_batch(batch, mesh))
    assert float(total) == pytest.approx((loss * weights).sum(), rel=1e-5)
    assert float(metrics["nll"]) == pytest.approx(-(picked * weights).sum(), rel=1e-5)
    assert float(weight) == weights.sum() and float(metrics["bytes"]) == tokens.size


def test_pretraining_and_fine_tuning_learn_by_a_named_objective(corpus, mesh, tmp_path):
    model = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab)
    cells = (
        Pretrain("base", model=model, batch=4, tokens=4 * 32 * 3, objective=NAMED),
        SFT("sft", task=TASK, examples=32, batch=2, objective=NAMED, min_gold=-99),
    )
    study = Study("s", cells, corpus.cfg)
    folders = Runs(tmp_path).folders(study, corpus.content_hash)
    for cell in cells:
        with Heartbeat(folders[cell.name]) as beat:
            run_cell(Context(study, cell, folders, corpus, Runtime(mesh, AXES), beat))
        for row in folders[cell.name].metrics():
            assert row["loss"] > row["nll"] > 0 and "bits_per_byte" not in row


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "by_row",
            r"returned an array of shape \(2,\) and type float32 as the sum; expected a scalar",
        ),
        ("alone", r"returned .*; expected \(sum, weight, metrics\)"),
        ("taken", "returned a metric named 'lr', which every step has"),
        ("failing", "raised KeyError: 'no such parameter' .*tiny_architecture.py, line"),
    ],
    ids=["by_row", "alone", "taken", "failing"],
)
def test_a_wrong_return_is_refused_when_it_is_traced(mesh, name, message):
    where, batch = f"tiny_architecture:{name}", {k: jnp.ones((2, 4)) for k in ("weights", "bytes")}
    objective = named_objective(where, "base.objective", GQA, AXES)
    with pytest.raises(ConfigError, match=rf"base.objective = '{where}' {message}"):
        jax.eval_shape(objective, {}, batch)


def test_the_arguments_of_an_objective_are_checked_before_anything_runs(corpus):
    model = ModelConfig(vocab=corpus.cfg.vocab)
    cell = Pretrain("base", model=model, tokens=8 * 32 * 32, objective="tiny_architecture:of_three")
    with pytest.raises(
        ConfigError, match=r"base.objective.*expected a function of \(params, batch"
    ):
        _check_callables(Study("s", (cell,), corpus.cfg))
