"""Guarantee: what is computed right without optimisation, as the other tests compile it, is
computed right by the programs that a worker runs. (`test_sharding` compiles with optimisation too,
in processes of its own.)"""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tiny_models import USER_FLAGS

from rlhf_jax.placement.cpu import worker_environment

ROOT = Path(__file__).parent.parent
TESTS = (
    "test_numerics.py::test_this_process_compiles_as_a_worker_does",
    "test_model.py::test_forward_equals_numpy_loops",
    "test_model.py::test_prefill_and_decode_equal_the_full_forward",
    "test_attention.py::test_a_kernel_equals_loops_forward_and_backward[4-2-cpu-float32]",
    "test_attention.py::test_a_kernel_equals_loops_forward_and_backward[4-2-xla-float32]",
    "test_attention.py::test_a_kernel_equals_loops_forward_and_backward[2-2-cpu-float32]",
    "test_objectives.py::test_language_modelling_is_the_weighted_sum_of_negative_log_likelihoods",
    "test_objectives.py::test_gradients_equal_differences_of_the_loops_in_float64",
    "test_dpo.py::test_log_probs_of_completions_are_those_of_the_loops",
    "test_train.py::test_accumulation_equals_the_big_batch_with_ragged_masks[2]",
    "test_train.py::test_three_steps_equal_a_hand_written_adamw_with_clipping",
    "test_generate.py::test_log_probs_equal_teacher_forcing_of_left_padded_prompts",
    "test_generate.py::test_greedy_equals_an_argmax_loop_over_full_forwards",
    "test_ppo.py::test_clipped_losses_equal_loops_over_tokens",
    "test_ppo.py::test_before_the_first_update_the_ratio_is_one",
    "test_ppo.py::test_a_trainer_that_disagrees_with_the_sampler_is_found_out",
    "test_rl_options.py::test_both_adams_equal_loops",
    "test_precision.py::test_logits_and_their_gradients_are_not_rounded_to_bfloat16",
    "test_precision.py::test_attention_scores_are_not_rounded_to_bfloat16[cpu]",
    "test_precision.py::test_bfloat16_logits_are_near_the_exact_ones_of_the_rounded_weights",
    "test_sampler_check.py::test_honest_runs_pass_with_room[learned-bfloat16-initial]",
)


@pytest.mark.skipif(
    USER_FLAGS not in os.environ, reason="of the process that the other test starts"
)
def test_this_process_compiles_as_a_worker_does():
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false"
    assert os.environ["NPROC"] == "1"
    text = jax.jit(lambda x: jnp.sin(x) * 2 + 1).lower(jnp.ones(8)).compile().as_text()
    assert "fusion(" in text  # without optimisation there is none


@pytest.mark.timeout(600)
def test_numbers_are_right_under_the_flags_of_a_worker(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    env = {**worker_environment(1), USER_FLAGS: "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run(
        [*command, *(f"tests/{test}" for test in TESTS)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    passed, *others = re.findall(r"\d+ \w+", done.stdout.splitlines()[-1])
    assert int(passed.split()[0]) >= len(TESTS) and passed.endswith("passed"), done.stdout[-500:]
    assert not any("skipped" in x for x in others), others
