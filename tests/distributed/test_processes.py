"""A run of several processes: its folder, its end, and one that is killed."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from mtf_jax.data import session_log
from tests.session_logs import random_log
from tests.sharded_logs import no_transition, parts_of, write_log

_ROOT = pathlib.Path(__file__).parents[2]
_ROWS = {"--dataset": "log.npz", "--log": "log"}
_SAID = "This process was killed, or stops because another one of the run did"


def _begin(folder, out_dir, *flags, num_devices=2, rows="--dataset"):
  devices = f"--xla_force_host_platform_device_count={num_devices}"
  return subprocess.Popen(
    (
      sys.executable,
      "-m",
      "experiments.train",
      f"{rows}={folder / _ROWS[rows]}",
      f"--out_dir={folder / out_dir}",
      "--preset=smoke",
      "--num_strata=8",
      *flags,
    ),
    cwd=_ROOT,
    env={
      **os.environ,
      "XLA_FLAGS": devices,
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _begin_two(folder, out_dir, *flags, rows="--dataset"):
  with socket.socket() as holder:
    holder.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{holder.getsockname()[1]}"
  return [
    _begin(
      folder,
      out_dir,
      *flags,
      f"--coordinator={coordinator}",
      "--num_processes=2",
      f"--process_id={number}",
      rows=rows,
    )
    for number in range(2)
  ]


def _record(out_dir, step):
  path = out_dir / "checkpoints" / str(step) / "record" / "metadata"
  return json.loads(path.read_text())


def _losses(out_dir):
  rows = (out_dir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(row)["critic_loss"] for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run of one process; two that lost one, went on as one, and ended."""
  folder = tmp_path_factory.mktemp("processes")
  log = random_log(num_rows=250)
  session_log.save_sessions(folder / "log.npz", log, {"world": "w"})
  alone = _begin(folder, "alone", num_devices=1)
  # Longer than anybody waits.
  begun = _begin_two(folder, "parted", "--num_updates=1000000")
  while not (folder / "parted" / "checkpoints" / "40").exists():
    assert [process.poll() for process in begun] == [None, None]
    time.sleep(0.1)
  begun[1].send_signal(signal.SIGKILL)
  _, said = begun[0].communicate(timeout=60)
  (folder / "said").write_text(said)
  assert begun[0].returncode not in (0, 1), said
  begun[1].communicate()
  _, said = alone.communicate(timeout=300)
  assert alone.returncode == 0, said
  return folder


def test_a_lost_process_ends_the_other_with_a_sentence(folder):
  said = (folder / "said").read_text().strip().splitlines()
  assert said[-1].startswith(_SAID) and said[-1].endswith(".")


def test_it_goes_on_with_another_number_of_processes(folder):
  losses = _losses(folder / "parted")
  done = len(losses) // 2 * 40
  process = _begin(
    folder, "parted", f"--num_updates={done + 40}", num_devices=1
  )
  printed, said = process.communicate(timeout=300)
  assert process.returncode == 0, said
  assert json.loads(printed)["step"] == done + 40
  assert "Going on from update" in said and "mesh" in said
  machines = _record(folder / "parted", done + 40)["machines"]
  assert [machine.get("processes") for machine in machines] == [2, None]
  assert machines[0]["mesh"] == {"data": 4, "critic": 1, "seed": 1}
  expected = _losses(folder / "alone")
  found = _losses(folder / "parted")
  assert len(found) == (done + 40) // 20
  np.testing.assert_allclose(
    found[: len(expected)], expected[: len(found)], rtol=1e-4
  )


def test_each_process_reads_its_part_of_a_folder(tmp_path):
  write_log(tmp_path / "log", [no_transition(), *parts_of(5, num_rows=60)])
  alone = _begin(tmp_path, "alone", num_devices=1, rows="--log")
  _, said = alone.communicate(timeout=300)
  assert alone.returncode == 0, said
  parted = _begin_two(tmp_path, "parted", rows="--log")
  ended = [process.communicate(timeout=300) for process in parted]
  assert [process.returncode for process in parted] == [0, 0], ended
  expected, found = _losses(tmp_path / "alone"), _losses(tmp_path / "parted")
  assert len(found) == 10 and min(found) > 0
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_damaged_file_is_seen_by_the_process_that_needs_it(tmp_path):
  write_log(tmp_path / "log", parts_of(5, num_rows=60))
  damaged = tmp_path / "log" / "shard-00004.npz"
  content = bytearray(damaged.read_bytes())
  content[len(content) // 2] ^= 1
  damaged.write_bytes(content)
  parted = _begin_two(tmp_path, "parted", rows="--log")
  first, second = (process.communicate(timeout=300)[1] for process in parted)
  assert all(process.returncode for process in parted)
  assert damaged.name in second and damaged.name not in first
