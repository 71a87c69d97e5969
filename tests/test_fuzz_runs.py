"""What `plan` accepts runs: random settings, extreme ones among them, through the command line."""

from __future__ import annotations

from random import Random

import pytest
from fuzz_runs import faults, random_settings, write_study

from rlhf_jax.study import load_study
from rlhf_jax.study.config import ConfigError


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_settings_that_plan_accepts_run_or_say_that_they_diverged(tmp_path):
    """Cells that others start from are trained once; the settings are of cells that start from
    few."""
    path = write_study(tmp_path)
    study, random, ran = load_study(path), Random(14), 0
    while ran < 12:
        head, overrides = random_settings(random, study)
        if head in ("base", "longer"):
            continue
        try:  # most of what is refused, without a process
            load_study(path, False, overrides)
        except ConfigError:
            continue
        outcome, wrong = faults(path, overrides, ["base" if head == "corpus" else head])
        assert not wrong, f"{overrides}: {outcome}: {wrong}"
        ran += not outcome.startswith("refused")
