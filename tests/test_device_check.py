"""Guarantee: `make device-check` passes where the devices compute what the product promises, and
names what they compute wrong, with exit code 1."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.model import dense, dispatch
from rlhf_jax.rl.rollout import Networks
from rlhf_jax.tools.bench import device_check


def checked(tmp_path, monkeypatch=None, only=None):
    """(exit code, the JSON) of the checks whose name begins with `only`."""
    if only:
        checks = device_check.checks
        monkeypatch.setattr(
            device_check,
            "checks",
            lambda *given: [c for c in checks(*given) if c[0].startswith(only)],
        )
    out = tmp_path / "deep" / "check.json"
    code = device_check.main(["--tiny", "--out", str(out)])
    return code, json.loads(out.read_text())


def wrong(found):
    return [one["name"] for one in found["checks"] if not one["passed"]]


def test_everything_is_measured_in_both_dtypes_and_right_here(tmp_path, capsys):
    code, found = checked(tmp_path)
    assert code == 0 and found["passed"] and not wrong(found)
    assert (
        found["platform"] == jax.default_backend() and found["versions"]["jax"] == jax.__version__
    )
    names = ["product", "attention cpu", "PPO's sampler", "training tiny"]
    assert [c["name"] for c in found["checks"]] == [
        f"{name} {dtype}" for name in names for dtype in ("float32", "bfloat16")
    ]
    for one in found["checks"]:
        assert one["limit"] > 0 and one["value"] <= one["limit"]
        if one["name"].startswith("training"):
            assert one["tokens_per_second"] == pytest.approx(8 * 16 / one["step_seconds"])
            assert 0 < one["mfu"] < 1
    printed = capsys.readouterr().out
    assert all(c["name"] in printed for c in found["checks"]) and "all as promised" in printed


def test_a_wrong_kernel_is_named(tmp_path, monkeypatch, capsys):
    right = dispatch.KERNELS["cpu"]
    monkeypatch.setitem(dispatch.KERNELS, "cpu", lambda q, *rest: right(1.03 * q, *rest))
    code, found = checked(tmp_path, monkeypatch, "attention")
    assert code == 1 and not found["passed"]
    assert wrong(found) == ["attention cpu float32", "attention cpu bfloat16"]
    assert "WRONG attention cpu float32" in capsys.readouterr().out


def test_a_product_of_less_than_float32_is_seen(tmp_path, monkeypatch):
    """Ten bits after the point, as TF32 has them."""
    right = dense.product

    def tf32(equation, a, b, out=None):
        a, b = (jax.lax.reduce_precision(x, 8, 10) for x in (a, b))
        return right(equation, a, b, out)

    monkeypatch.setattr(dense, "product", tf32)
    code, found = checked(tmp_path, monkeypatch, "product")
    assert code == 1 and wrong(found) == ["product float32"]


def test_a_trainer_at_another_temperature_is_seen(tmp_path, monkeypatch):
    right = Networks.outputs
    monkeypatch.setattr(
        Networks, "outputs", lambda self, p, r, n, t, axes: right(self, p, r, n, 1.1 * t, axes)
    )
    monkeypatch.setattr(device_check, "DTYPES", ("bfloat16",))
    code, found = checked(tmp_path, monkeypatch, "PPO")
    assert code == 1 and wrong(found) == ["PPO's sampler bfloat16"]
    assert all("iteration 0: before any update" in one["mismatches"][0] for one in found["checks"])


def test_what_cannot_run_or_is_nan_is_wrong_with_the_reason(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(device_check, "_attended", broken)
    monkeypatch.setattr(dense, "product", lambda *_: jnp.full((256, 256), jnp.nan))
    code, found = checked(tmp_path, monkeypatch, ("product", "attention"))
    assert code == 1 and wrong(found) == ["product float32", "product bfloat16", "attention"]
    assert found["checks"][-1]["error"] == "RuntimeError: no such kernel"
    assert found["checks"][0]["value"] is None
    assert not device_check.check("x", math.nan, None)["passed"]


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "check.json"):
        with pytest.raises(SystemExit) as e:
            device_check.main(["--tiny", "--out", str(out)])
        assert e.value.code == 2 and f"--out {out}" in capsys.readouterr().err
