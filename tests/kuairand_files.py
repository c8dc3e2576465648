"""Folders in KuaiRand's layout: small ones from a model, and the real one."""

import csv
import gzip
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data import kuairand
from mtf_jax.fitting import population
from mtf_jax.worlds import response

# The real log: the environment's, or one beside the repository.
REAL = pathlib.Path(
  os.environ.get("MTF_JAX_KUAIRAND")
  or pathlib.Path(__file__).parents[2] / "shared" / "data" / "kuairand_pure"
)

LOG_COLUMNS = [
  "user_id",
  "video_id",
  "date",
  "hourmin",
  "time_ms",
  "is_click",
  "is_like",
  "is_follow",
  "is_comment",
  "is_forward",
  "is_hate",
  "long_view",
  "play_time_ms",
  "duration_ms",
  "profile_stay_time",
  "comment_stay_time",
  "is_profile_enter",
  "is_rand",
  "tab",
]
USER_COLUMNS = [
  "user_id",
  "user_active_degree",
  "is_lowactive_period",
  "is_live_streamer",
  "is_video_author",
  "follow_user_num",
  "follow_user_num_range",
  "fans_user_num",
  "fans_user_num_range",
  "friend_user_num",
  "friend_user_num_range",
  "register_days",
  "register_days_range",
] + [f"onehot_feat{n}" for n in range(18)]
VIDEO_COLUMNS = [
  "video_id",
  "author_id",
  "video_type",
  "upload_dt",
  "upload_type",
  "visible_status",
  "video_duration",
  "server_width",
  "server_height",
  "music_id",
  "music_type",
  "tag",
]


def write_csv(path: pathlib.Path, columns, rows) -> None:
  opener = gzip.open if path.suffix == ".gz" else open
  with opener(path, "wt", newline="") as stream:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


@jax.jit
def _sample(uniforms, model, users, items):
  def one(u, user, item):
    return response.sample_responses(u, model, user, item)

  return jax.vmap(one)(uniforms, users, items[:, None])[:, 0]


def simulate(model, users, items, seed):
  """`[n, E]` behaviours of single impressions."""
  uniforms = jax.random.uniform(jax.random.key(seed), (len(users), 1, 2))
  model = jax.tree.map(jnp.asarray, model)
  return np.asarray(
    _sample(uniforms, model, jnp.asarray(users), jnp.asarray(items))
  )


def draw(num_users=300, num_items=200, num_rows=6000, seed=0):
  """A synthetic response model and impressions, likelier within reach."""
  rng = np.random.default_rng(seed)
  model = population.synthetic_response(rng, num_users, num_items)
  users = rng.integers(num_users, size=4 * num_rows)
  items = rng.integers(num_items, size=4 * num_rows)
  reach = np.sum(model.user_factors[users] * model.item_factors[items], axis=-1)
  order = np.argsort(-(reach + rng.gumbel(size=len(reach))))[:num_rows]
  users, items = (x[order].astype(np.int32) for x in (users, items))
  return model, users, items, simulate(model, users, items, seed + 1)


def write_folder(folder, *, num_users=300, num_items=200, num_rows=6000):
  """Writes features and a log of two files over six days; returns the model."""
  folder = pathlib.Path(folder)
  model, users, items, feedback = draw(num_users, num_items, num_rows)
  rng = np.random.default_rng(7)
  write_csv(
    folder / "user_features.csv.gz",
    USER_COLUMNS,
    [
      [
        u,
        "full_active",
        0,
        u % 2,
        u % 3 % 2,
        5,
        "(10,50]",
        3,
        "[1,10)",
        1,
        "[1,5)",
        90,
        "61-90",
        *rng.integers(4, size=18).tolist(),
      ]
      for u in range(num_users)
    ],
  )
  duration = model.duration
  write_csv(
    folder / "video_features_basic_pure.csv",
    VIDEO_COLUMNS,
    [
      [
        i,
        i % 9,
        "NORMAL",
        "2022-04-10",
        "Web",
        0.0,
        "" if np.isinf(duration[i]) else round(1000 * float(duration[i]), 1),
        720,
        1280,
        5,
        9.0,
        "3,4" if i % 2 else "5",
      ]
      for i in range(num_items)
    ],
  )
  # Their averages over the whole period must not be read.
  (folder / "video_features_statistic_pure.csv").write_text("broken\n")
  rows = []
  for n, (user, item) in enumerate(zip(users, items, strict=True)):
    valid, play, _, click, long_view, *rare = feedback[n]
    del valid
    like, comment, follow, forward, hate = (int(x) for x in rare)
    length = 0 if np.isinf(duration[item]) else round(1000 * duration[item])
    day = n % 6
    rows.append(
      [
        user,
        item,
        20220425 + day,
        1800,
        # From 18:26 on, in Beijing.
        1650882384975 + day * 86_400_000 + 500 * n,
        int(click),
        like,
        follow,
        comment,
        forward,
        hate,
        int(long_view),
        int(1000 * play),
        length,
        0,
        0,
        0,
        0,
        1,
      ]
    )
  half = num_rows // 2
  write_csv(folder / "log_standard_a.csv.gz", LOG_COLUMNS, rows[:half])
  write_csv(folder / "log_standard_b.csv", LOG_COLUMNS, rows[half:])
  return model


def read(folder):
  """(the log, repetitions dropped) of a folder."""
  return kuairand.read_log(folder, kuairand.read_catalogue(folder))


def lines_of(folder):
  """Lines of the plain log file that `write_folder` wrote, header first."""
  return (folder / "log_standard_b.csv").read_text().splitlines()


def write_lines(folder, lines):
  (folder / "log_standard_b.csv").write_text("\n".join(lines) + "\n")


def set_value(folder, row, column, value):
  """Replaces one value of the plain log file; row counts from 1."""
  lines = lines_of(folder)
  fields = lines[row].split(",")
  fields[LOG_COLUMNS.index(column)] = value
  lines[row] = ",".join(fields)
  write_lines(folder, lines)
