"""Every launcher refuses in one sentence what it is given and cannot use."""

import itertools
import pathlib

import forked_launchers
import pytest

from mtf_jax.data import session_log
from tests.session_logs import random_log, with_candidates

_ROOT = pathlib.Path(__file__).parents[2]

# Every module that is started with flags, and what it cannot do without.
_NEEDS = {
  "experiments.audit_world": [],
  "experiments.collect": [],
  "experiments.compare": [],
  "experiments.export_policy": ["--run=folder", "--out_dir=new"],
  "experiments.fit_constants": ["--log_dir=folder"],
  "experiments.fit_world": ["--log_dir=folder"],
  "experiments.import_log": ["--schema=text", "--input=table.csv"],
  "experiments.log_gauc": ["--log_dir=folder", "--world=text", "--run=folder"],
  "experiments.pareto": ["--run=folder"],
  "experiments.plot_exploration": [],
  "experiments.progressive": [],
  "experiments.successors": [],
  "experiments.train": ["--dataset=log.npz", "--out_dir=new"],
  "benchmarks.catalogue": [],
  "benchmarks.containers": [],
  "benchmarks.critic_rows": [],
  "benchmarks.global_weights": [],
  "benchmarks.growth": [],
  "benchmarks.growth.picture": ["--results=text"],
  "benchmarks.interop": [],
  "benchmarks.kernels": [],
  "benchmarks.known_weights": [],
  "benchmarks.learner": [],
  "benchmarks.own_log": ["--log_dir=folder", "--world=text"],
  "benchmarks.peers": [],
  "benchmarks.peers.install": ["--out_dir=new"],
  "benchmarks.platform_log": [],
  "benchmarks.progressive_memory": [],
  "benchmarks.rivals": [],
  "benchmarks.scaling": [],
  "benchmarks.scale": ["--input=folder", "--schema=text"],
  "benchmarks.serving": [],
  "benchmarks.sessions": [],
  "benchmarks.streaming": [],
  "benchmarks.trained_elsewhere": [],
  "benchmarks.world": [],
}
_IN_FILE = {
  "experiments.audit_world": "world",
  "experiments.collect": "world",
  "experiments.import_log": "schema",
  "benchmarks.growth.picture": "results",
  "benchmarks.own_log": "world",
  "experiments.log_gauc": "world",
  "experiments.progressive": "world",
  "experiments.successors": "world",
  "experiments.train": "dataset",
}
_IN_DIR = {
  "experiments.audit_world": "log_dir",
  "experiments.compare": "log_dir",
  "experiments.export_policy": "run",
  "experiments.fit_constants": "log_dir",
  "experiments.fit_world": "log_dir",
  "benchmarks.own_log": "log_dir",
  "benchmarks.peers": "peers_dir",
  "experiments.log_gauc": "run",
  "experiments.pareto": "run",
  "experiments.train": "log",
}
_OUT_DIR = (
  *("experiments.audit_world", "experiments.export_policy"),
  *("experiments.fit_constants", "experiments.progressive"),
  *("experiments.pareto", "experiments.successors"),
  *("experiments.import_log", "experiments.train"),
  *("benchmarks.peers.install", "benchmarks.platform_log"),
  "benchmarks.scale",
)
_OUT_FILE = {
  "experiments.collect": "out",
  "experiments.fit_world": "out",
  "experiments.log_gauc": "out",
  "experiments.plot_exploration": "out",
  "benchmarks.growth.picture": "out",
  **{
    name: "json_out"
    for name in _NEEDS
    # What is on record has a place of its own; an installation and a picture
    # write none.
    if name.startswith("benchmarks")
    and name
    not in (
      "benchmarks.growth.picture",
      "benchmarks.known_weights",
      "benchmarks.peers.install",
    )
  },
}
_SEED = {
  "experiments.audit_world": "world_seed",
  "experiments.collect": "seed",
  "experiments.export_policy": "seed",
  "experiments.fit_constants": "seed",
  "experiments.fit_world": "seed",
  "experiments.log_gauc": "seed",
  "experiments.pareto": "seed",
  "experiments.progressive": "seeds",
  "experiments.successors": "seeds",
  "experiments.train": "seed",
  "benchmarks.trained_elsewhere": "seeds",
}


def _cases():
  """`(launcher, flag, what the sentence says)`."""
  for name in _NEEDS:
    yield name, "stray", "expected flags only, found 'stray'"
    yield name, "--nowhere=1", "Unknown command line flag 'nowhere'"
  for name, flag in _IN_FILE.items():
    yield name, f"--{flag}=none", "found no such file"
    yield name, f"--{flag}=folder", "found a folder"
    yield name, f"--{flag}=", "found an empty name"
    yield name, f"--{flag}=text", "text: expected"
  for name, flag in _IN_DIR.items():
    yield name, f"--{flag}=none", "expected a folder, found no such folder"
    yield name, f"--{flag}=text", "expected a folder, found a file"
    yield name, f"--{flag}=", "expected a folder, found no such folder"
  for name in _OUT_DIR:
    yield name, "--out_dir=", "a folder to write into, found an empty name"
    yield name, "--out_dir=text", "a folder to write into, found a file"
    yield name, "--out_dir=text/a", "cannot be written to (Not a directory)"
    yield name, "--out_dir=/proc/a/b", "/proc cannot be written to"
    yield name, f"--out_dir={'b' * 300}", "(File name too long)"
    yield name, "--out_dir=dangling", "dangling cannot be written to"
    yield name, "--out_dir=\udcff", "a name that is no UTF-8"
  for name, flag in _OUT_FILE.items():
    suffix = ".png" if name.endswith(("exploration", "picture")) else ""
    folder = "folder.png" if suffix else "folder"
    yield name, f"--{flag}=", "a file to write, found an empty name"
    yield name, f"--{flag}={folder}", "a file to write, found a folder"
    yield (
      name,
      f"--{flag}=text/a{suffix}",
      "cannot be written to (Not a directory)",
    )
    yield name, f"--{flag}=/proc/a{suffix}", "/proc cannot be written to"
  for name, flag in _SEED.items():
    for value in ("-1", "4294967296", "1e20", "x", ""):
      yield name, f"--{flag}={value}", f"--{flag}={value}: "
  yield from (
    ("experiments.collect", "--out=new/", "found the name of a folder"),
    ("experiments.collect", "--size=huge", "small|base|large"),
    ("experiments.collect", "--items=no", "list|item"),
    ("experiments.collect", "--leaving=no", "satisfaction_floor|"),
    ("experiments.collect", "--sessions=0", "0 is not a positive integer"),
    ("experiments.collect", "--action=1,x", "expected a number, found 'x'"),
    ("experiments.collect", "--action=1_0", "expected a number, found '1_0'"),
    ("experiments.export_policy", "--round=0", "0 is not a positive integer"),
    ("experiments.export_policy", "--half_width=-1", "-1.0 is not a number in"),
    ("experiments.export_policy", "--out_dir=folder", "where nothing is, fou"),
    ("experiments.fit_world", "--pool_size=0", "0 is not a positive integer"),
    ("experiments.fit_world", "--pool_size=96", "a power of two, found 96"),
    ("experiments.fit_world", "--slate_size=51", "51 to 512, found 50"),
    ("experiments.import_log", "--input=none", "none: expected a file of a lo"),
    ("experiments.import_log", "--input=log.npz", "a name ending in .parquet"),
    ("experiments.import_log", "--rows_per_shard=0", "0 is not a positive in"),
    ("experiments.plot_exploration", "--out=a.gif", "a name ending in .png or"),
    ("experiments.plot_exploration", "--sharpness=nan", "a positive finite"),
    ("experiments.progressive", "--seeds=1,1", "--seeds: expected different"),
    ("experiments.progressive", "--learners=enhanced_rl", "from shown items"),
    ("experiments.progressive", "--learners=xmtf", "from scores of candidates"),
    ("experiments.progressive", "--seeds=1_0", "integers from 0 to 429496"),
    ("experiments.progressive", "--seeds=\u0663", "integers from 0 to 429496"),
    ("experiments.progressive", "--resume", "there is no run in"),
    ("experiments.successors", "--learners=bcc", "--learners: expected diff"),
    ("experiments.successors", "--shared=", "--shared: expected different"),
    (
      "experiments.train",
      "--coordinator=127.0.0.1:1",
      "--process_id together, found --num_processes, --process_id missing.",
    ),
    ("experiments.train", "--learner=enhanced_rl", "shown items (item_feat"),
    ("experiments.train", "--learner=xmtf", "scores of candidates (candidate_"),
    ("experiments.train", "--dataset=cells.npz", "action: expected powers and"),
    ("experiments.train", "--processes=auto", "expected SLURM, Open MPI, Kube"),
    ("experiments.train", "--mesh=data:3,model:2", "mesh: expected data, crit"),
    ("experiments.train", "--mesh=data:9999", "mesh: expected at most"),
    ("experiments.collect", "--mesh=data:9999", "mesh: expected at most"),
    ("experiments.progressive", "--mesh=data:0", "mesh: expected data, crit"),
    (
      "experiments.train",
      "--num_strata=7",
      "num_strata: expected a divisor of",
    ),
    ("experiments.train", "--log=folder", "Exactly one of (dataset, log)"),
    ("experiments.train", "--device_gib=-1", "-1.0 is not a non-negative"),
    ("experiments.train", "--keep=0", "--keep=0: 0 is not a positive integer"),
    ("experiments.train", "--keep=-1", "--keep=-1: -1 is not a positive"),
    (
      "experiments.train",
      "--learner=x",
      "value should be one of <integrated_rl|",
    ),
    ("experiments.train", "--num_updates=30", "multiple of chunk_size"),
    ("experiments.train", "--hyperparam=sharpness", "name=number[,number], f"),
    ("experiments.train", "--hyperparam=discount=nan", "a number, found 'nan'"),
    ("experiments.train", "--hyperparam=sharpnes=1", "fields of integrated_rl"),
    (
      "experiments.train",
      "--hyperparam=discount=2",
      "discount: expected a val",
    ),
    ("benchmarks.growth", "--axes=no", "--axes: expected some of critics"),
    ("benchmarks.growth.picture", "--out=a.gif", "a name ending in .png or"),
    ("benchmarks.kernels", "--kernels=no", "--kernels: expected some of"),
    ("benchmarks.kernels", "--sizes=0", "expected integers from 1 up"),
    ("benchmarks.learner", "--repeats=0", "0 is not a positive integer"),
    ("benchmarks.learner", "--workload=no", "reference|sweep"),
    ("benchmarks.progressive_memory", "--preset=no", "smoke|cpu|paper"),
    ("benchmarks.trained_elsewhere", "--learners=bc", "names of td3_bc, "),
    ("benchmarks.trained_elsewhere", "--trainings=0", "0 is not a positive"),
    ("benchmarks.world", "--candidates=257", "integers from 6 to 256"),
  )


_CASES = list(_cases())

# Programs of the mechanism alone, and how they end.
_PROGRAM = """
import sys
from absl import flags
from experiments import launch
from mtf_jax.io import InputError

flags.DEFINE_string("name", "a", "Some text.")

def main():
  %s

if __name__ == "__main__":
  launch.run(main%s)
"""
_PROGRAMS = {
  "input_error": ('raise InputError("a: no.")', "", 2, "a: no.\n"),
  "os_error": (
    'open("none")',
    "",
    2,
    "none: No such file or directory.\n",
  ),
  "no_space": (
    'raise OSError(28, "No space left on device")',
    "",
    2,
    "No space left on device.\n",
  ),
  "start_again": (
    "raise KeyboardInterrupt",
    "",
    130,
    "Interrupted; to start again: python start_again.py '--name=b c'\n",
  ),
  "go_on": (
    "raise KeyboardInterrupt",
    ', resume=lambda: ["--resume"]',
    130,
    "Interrupted; to go on: python go_on.py '--name=b c' --resume\n",
  ),
  "undecodable": ('print("\\udcff")', "", 0, "\\udcff\n"),
  "exit": ("sys.exit(7)", "", 7, ""),
}


# Prints the integer flags of a launcher that take any integer.
_UNBOUNDED = """
import importlib, sys
from absl import flags

module = importlib.import_module(sys.argv[1])
for flag in flags.FLAGS.get_flags_for_module(module):
  if isinstance(flag.parser, flags.IntegerParser):
    if flag.parser.lower_bound is None:
      print(flag.name)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  """Status and output of every case and program, in a folder of their own."""
  cwd = tmp_path_factory.mktemp("launch")
  for folder in ("folder", "folder.png"):
    (cwd / folder).mkdir()
  (cwd / "text").write_text("no such thing")
  (cwd / "table.csv").write_text("a\n1\n")
  (cwd / "dangling").symlink_to("nowhere")
  session_log.save_sessions(cwd / "log.npz", random_log(), {"world": "w1"})
  session_log.save_sessions(cwd / "cells.npz", with_candidates(random_log()))
  for name, (body, argument, _, _) in _PROGRAMS.items():
    (cwd / f"{name}.py").write_text(_PROGRAM % (body, argument))
  (cwd / "fault.py").write_text(_PROGRAM % ('raise ValueError("x")', ""))
  (cwd / "unbounded.py").write_text(_UNBOUNDED)
  before = sorted(cwd.rglob("*"))
  # Flags given twice: the last one counts.
  cases = [(name, [*_NEEDS[name], flag]) for name, flag, _ in _CASES]
  programs = [(f"{name}.py", ["--name=b c"]) for name in _PROGRAMS]
  programs.append(("fault.py", []))
  unbounded = [("unbounded.py", [name]) for name in _NEEDS]
  found = forked_launchers.run_all([*cases, *programs, *unbounded], cwd)
  assert sorted(cwd.rglob("*")) == before, "something was written"
  keys = [*((name, flag) for name, flag, _ in _CASES), *_PROGRAMS, "fault"]
  keys += [("unbounded", name) for name in _NEEDS]
  return dict(zip(keys, found, strict=True))


def test_every_launcher_is_here():
  """Whatever has flags of its own goes through the one mechanism."""
  found = set()
  for path in itertools.chain(
    _ROOT.glob("experiments/*.py"), _ROOT.glob("benchmarks/**/*.py")
  ):
    text = path.read_text(encoding="utf-8")
    assert "app.run" not in text or path.name == "launch.py"
    if "launch.run(" in text and path.name != "launch.py":
      module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
      found.add(module.removesuffix(".__main__"))
  assert found == set(_NEEDS)


@pytest.mark.parametrize(("name", "flag", "sentence"), _CASES)
def test_what_cannot_be_used_is_refused(outcomes, name, flag, sentence):
  status, said = outcomes[name, flag]
  assert status == 2, said
  assert sentence in said
  # One sentence, and no traceback or help before it.
  assert said.count("\n") == 1 and said.endswith(".\n"), said


@pytest.mark.parametrize("name", _PROGRAMS)
def test_ends(outcomes, name):
  _, _, status, said = _PROGRAMS[name]
  assert outcomes[name] == [status, said]


def test_a_fault_is_shown_with_its_traceback(outcomes):
  status, said = outcomes["fault"]
  assert status == 1
  assert "Traceback" in said and said.endswith("ValueError: x\n")


@pytest.mark.parametrize("name", _NEEDS)
def test_integers_have_a_lower_bound(outcomes, name):
  assert outcomes["unbounded", name] == [0, ""]
