"""Guarantee: a preset's shape has the published number of parameters."""

import pytest

from rlhf_jax.cost.flops import param_counts
from rlhf_jax.cost.presets import PRESETS, preset
from rlhf_jax.study.config import ConfigError

# MaxText's names are powers of two, its own log of the scale-1 model says 1.104 billion.
TOLERANCE = {name: 0.03 if name.startswith("maxtext") else 0.002 for name in PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name):
    p = preset(name)
    ours = param_counts(p.model)["total"] + p.absent
    assert ours == pytest.approx(p.params, rel=TOLERANCE[name])
    assert p.source and bool(p.absent) <= bool(p.differs)


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'llama-8b'"):
        preset("llama-8")
