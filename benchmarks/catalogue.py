"""Peak memory of reading the catalogue of a folder as large as KuaiRand-27K's.

  python -m benchmarks.catalogue --videos=32000000 \
    --json_out=benchmarks/results/catalogue_cpu.json

The videos are made up: as many, with as many authors, durations and tags a video
as the release says it has. The reader is a process of its own.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
from absl import flags
from pyarrow import csv as pa_csv

from benchmarks import harness
from experiments import launch

_VIDEOS = flags.DEFINE_integer("videos", 32_000_000, "Videos.", 1)
_AUTHORS = flags.DEFINE_integer("authors", 8_000_000, "Authors.", 1)
_BLOCK = 1_000_000
_TAGS = 60
_USERS = "user_id," + ",".join(
  (
    *("user_active_degree", "is_live_streamer", "is_video_author"),
    *("follow_user_num_range", "fans_user_num_range"),
    *("friend_user_num_range", "register_days_range"),
    *(f"onehot_feat{n}" for n in range(18)),
  )
)
# Reads, and says how many videos there are.
_PROGRAM = """
import sys
from mtf_jax.data import kuairand
catalogue = kuairand.read_catalogue(sys.argv[1])
print(len(catalogue.video_ids), sum(a.nbytes for a in catalogue if hasattr(a, "nbytes")))
"""


def _block(rng: np.random.Generator, first: int, rows: int) -> pa.Table:
  tags = rng.integers(0, _TAGS, (rows, 2))
  two = rng.random(rows) < 0.2
  one = [str(tag) for tag in range(_TAGS)]
  both = [f"{a},{b}" for a in range(_TAGS) for b in range(_TAGS)]
  texts = pa.array(one + both).take(
    pa.array(np.where(two, _TAGS + tags[:, 0] * _TAGS + tags[:, 1], tags[:, 0]))
  )
  return pa.table(
    {
      "video_id": first + rng.permutation(rows),
      "author_id": rng.integers(0, _AUTHORS.value, rows),
      "video_type": pa.array(["NORMAL", "AD"]).take(
        pa.array(rng.integers(0, 2, rows))
      ),
      "upload_type": pa.array([f"Type{n}" for n in range(20)]).take(
        pa.array(rng.integers(0, 20, rows))
      ),
      "video_duration": rng.integers(3_000, 300_000, rows).astype(np.float64),
      "music_type": rng.integers(0, 10, rows),
      "tag": texts,
    }
  )


def main() -> None:
  """Writes the files, reads them, prints the peak."""
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / "user_features.csv").write_text(
      f"{_USERS}\n1{',0' * _USERS.count(',')}\n", encoding="utf-8"
    )
    path = folder / "video_features_basic.csv"
    writer = None
    for first in range(0, _VIDEOS.value, _BLOCK):
      rows = min(_BLOCK, _VIDEOS.value - first)
      table = _block(rng, first, rows)
      if writer is None:
        writer = pa_csv.CSVWriter(path, table.schema)
      writer.write_table(table)
    if writer is not None:
      writer.close()
    size = path.stat().st_size
    start = time.monotonic()
    process = subprocess.Popen(
      [sys.executable, "-c", _PROGRAM, name],
      cwd=pathlib.Path(__file__).parents[1],
      stdout=subprocess.PIPE,
      text=True,
    )
    printed = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
  videos, held = (int(number) for number in printed.split())
  result = {
    "videos": videos,
    "csv_bytes": size,
    "catalogue_bytes": held,
    "peak_bytes": usage.ru_maxrss * 1024,
    "seconds": seconds,
  }
  print(
    f"{videos} videos, {size / 2**30:.2f} GiB of CSV: the catalogue takes"
    f" {held / 2**30:.2f} GiB, reading it {usage.ru_maxrss / 2**20:.2f} GiB at"
    f" most, {seconds:.0f} s"
  )
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value, {"environment": harness.environment(), **result}
    )


if __name__ == "__main__":
  launch.run(main)
