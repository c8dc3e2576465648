"""A `--world` that is none is refused in a sentence, by every launcher alike."""

import pytest
from absl import app

from experiments import worlds


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("none.world", "none.world cannot be read .No such file"),
    ("", "cannot be read .Is a directory"),
    ("damaged.world", "expected a world file beginning with"),
  ],
)
def test_what_is_no_world_is_refused(tmp_path, name, message):
  (tmp_path / "damaged.world").write_text("no world")
  with pytest.raises(app.UsageError, match=f"^--world: .*{message}"):
    worlds.make_or_load(str(tmp_path / name), "small", 0)
