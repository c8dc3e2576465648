"""The page about platform logs runs as it is written."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

from mtf_jax.data import log_schema, schema_file

_ROOT = pathlib.Path(__file__).parents[1]
_PAGE = (_ROOT / "docs" / "platform_log.md").read_text(encoding="utf-8")


def _blocks(language):
  return re.findall(
    rf"^```{language}\n(.*?)^```$", _PAGE, re.MULTILINE | re.DOTALL
  )


def _shape(text):
  return re.sub(r"\d[\d,]*(\.\d+)?", "N", text)


def test_the_commands_print_what_the_page_shows(tmp_path):
  (commands,) = _blocks("bash")
  (shown,) = _blocks("text")
  printed = {}
  for line in commands.splitlines():
    done = subprocess.run(
      line.replace(".venv/bin/python", sys.executable),
      shell=True,
      cwd=tmp_path,
      env={
        **os.environ,
        "PYTHONPATH": str(_ROOT),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      },
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert done.returncode == 0, done.stderr
    printed[line] = done.stdout
  found = [
    text for line, text in printed.items() if "--out_dir=runs/log" in line
  ]
  (imported,) = found
  assert _shape(imported) == _shape(shown)
  # All but the seconds are the same on every machine.
  assert imported.splitlines()[:-1] == shown.splitlines()[:-1]
  (checked,) = [text for line, text in printed.items() if "--dry_run" in line]
  assert checked.splitlines()[:-1] == shown.splitlines()[:-1]
  described = schema_file.read_schema(tmp_path / "runs" / "described.toml")
  written = schema_file.read_schema(tmp_path / "runs" / "schema.toml")
  assert described.action == written.action
  assert described.behaviours == written.behaviours
  assert '"step": 200' in list(printed.values())[-1]
  scope = {}
  block = next(b for b in _blocks("python"))
  os.chdir(tmp_path)
  try:
    exec(block, scope)
  finally:
    os.chdir(_ROOT)
  assert scope["log"].manifest.sessions == 2000
  assert len(scope["part"].terminal) == 20035


def test_the_schema_of_the_page_is_one():
  (text,) = _blocks("toml")
  schema = schema_file.parse_schema(text)
  assert schema.group_names == ("consumption", "interaction")
  assert schema.observation_names[-1] == "embedding[7]"


@pytest.mark.parametrize(
  "kind",
  [
    *(log_schema.Session, log_schema.Order, log_schema.Feature),
    *(log_schema.Action, log_schema.Box, log_schema.Exploration),
  ],
)
def test_every_key_is_on_the_page(kind):
  table = _PAGE.split("| table | what may stand there |")[1].split("\n\n")[0]
  for field in dataclasses.fields(kind):
    assert f"`{field.name}" in table, field.name
