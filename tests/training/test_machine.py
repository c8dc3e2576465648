"""What is said of the machine that a run is on."""

import os

import jax

import mtf_jax
from mtf_jax.training import machine


def test_threads_are_those_that_the_process_may_use(monkeypatch):
  monkeypatch.setattr(os, "cpu_count", lambda: 64)
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
  for limit, threads in (("", 3), ("2", 2), ("8", 3), ("0", 3), ("x", 3)):
    monkeypatch.setenv("NPROC", limit)
    assert machine.num_threads() == threads
  monkeypatch.delenv("NPROC")
  monkeypatch.delattr(os, "sched_getaffinity")
  assert machine.num_threads() == 64


def test_a_machine_is_described_and_kept_once(caplog):
  (here,) = machine.went_on([], 0)
  assert here["from_update"] == 0
  assert here["mtf_jax"] == mtf_jax.__version__
  assert here["jax"] == jax.__version__
  assert here["device_kind"] == jax.devices()[0].device_kind
  assert here["threads"] == machine.num_threads()
  assert machine.went_on([here], 100) == [here]
  assert not caplog.records
  before = {**here, "jax": "0.1", "device_kind": "abacus"}
  assert machine.went_on([before], 100) == [
    before,
    {**here, "from_update": 100},
  ]
  assert f"(jax 0.1 before, {jax.__version__} now; device_kind abacus" in (
    caplog.text
  )
