"""How every launcher reads its flags, refuses what it was given, and ends.

Exit status 0 says that all is done, 2 that something given cannot be used, in
one sentence on stderr, 130 that Ctrl-C was pressed. A traceback, with status 1,
is a fault of the package.

Flags that name files and folders are made here: they are looked at before a
launcher does anything, so that no hour of work ends in a folder that cannot be
written to.
"""

import contextlib
import math
import os
import re
import shlex
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from mtf_jax.io import MAX_SEED, InputError, require_file

REFUSED, INTERRUPTED = 2, 130

# `--help` shows a flag with the launcher that has it, not with this module.
flags.disclaim_key_flags()


def run(
  main: Callable[[], None],
  resume: Callable[[], Sequence[str]] | None = None,
) -> NoReturn:
  """Parses the flags, runs the launcher and exits.

  Args:
    main: what the launcher does, once its flags hold.
    resume: flags to add to the command so that it goes on where Ctrl-C stopped
      it; None if it can only start again.
  """
  # A name that is no text of the terminal's encoding is printed all the same.
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace")

  def guarded(_):
    if not flags.FLAGS["verbosity"].present:
      # Orbax reports every step of a save.
      logging.set_verbosity(logging.WARNING)
    try:
      main()
    except InputError as error:
      _end(str(error), REFUSED)
    except OSError as error:
      _end(_reason(error), REFUSED)
    except KeyboardInterrupt:
      verb = "start again" if resume is None else "go on"
      command = _command(() if resume is None else resume())
      _end(f"Interrupted; to {verb}: {command}", INTERRUPTED)

  app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> Sequence[str]:
  try:
    rest = flags.FLAGS(argv)[1:]
  except flags.Error as error:
    # One line for each flag, which name it in several ways.
    lines = [
      re.sub("^flag (--[^=]*=None: Flag )?", "", line).removesuffix(".")
      for line in str(error).splitlines()
    ]
    _end(f"{'; '.join(lines)}.", REFUSED)
  if rest:
    _end(f"expected flags only, found {' '.join(rest)!r}.", REFUSED)
  return argv[:1]


def _end(message: str, status: int) -> NoReturn:
  print(message, file=sys.stderr, flush=True)
  raise SystemExit(status)


def _reason(error: OSError) -> str:
  reason = error.strerror or str(error) or type(error).__name__
  return f"{error.filename}: {reason}." if error.filename else f"{reason}."


def _command(more: Sequence[str]) -> str:
  spec = sys.modules["__main__"].__spec__
  if spec is None:
    program = [sys.argv[0]]
  else:
    program = ["-m", spec.name.removesuffix(".__main__")]
  return shlex.join(["python", *program, *sys.argv[1:], *more])


@contextlib.contextmanager
def refusals(before: str = "") -> Iterator[None]:
  """Around checks of what was given: their ValueErrors become refusals.

  Only for code that checks: a ValueError of other code is a fault.

  Args:
    before: what their messages lack, such as the name of a flag.
  """
  try:
    yield
  except ValueError as error:
    raise InputError(f"{before}{error}") from error


def check_output(path: str, folder: bool) -> None:
  """Refuses a file or folder that could not be written, without making it.

  Args:
    path: of the file or folder; folders above it may be missing.
    folder: whether it is to be a folder.

  Raises:
    InputError: it is empty, of the other kind, or not to be written to.
  """
  expected = "a folder to write into" if folder else "a file to write"
  if not path:
    raise InputError(f"expected {expected}, found an empty name.")
  if not folder and path.endswith(os.sep):
    raise InputError(f"expected {expected}, found the name of a folder.")
  try:
    path.encode()
  except UnicodeEncodeError as error:  # Orbax writes no such name.
    raise InputError(
      f"expected {expected}, found a name that is no UTF-8; set PYTHONUTF8=1 if"
      " it is."
    ) from error
  place = os.path.abspath(path)
  try:
    mode = _mode(place)
    if mode is not None and stat.S_ISDIR(mode) != folder:
      found = "a file" if folder else "a folder"
      raise InputError(f"expected {expected}, found {found}.")
    if not folder:
      place = os.path.dirname(place)
    while _mode(place) is None:
      place = os.path.dirname(place)
    tempfile.TemporaryFile(dir=place).close()
  except OSError as error:
    raise InputError(
      f"expected {expected}, found that {place} cannot be written to"
      f" ({error.strerror})."
    ) from error


def _mode(place: str) -> int | None:
  """What lies there, None if nothing; a link to nothing is an error."""
  try:
    return os.stat(place).st_mode
  except FileNotFoundError:
    if os.path.islink(place):
      raise
    return None


def _validated(
  holder: flags.FlagHolder[Any], check: Callable[[Any], None]
) -> flags.FlagHolder[Any]:
  """Has absl check a flag's value, if it has one, while it parses."""

  def validator(value):
    try:
      if value is not None:
        check(value)
    except InputError as error:
      # absl names the flag with its value.
      message = str(error).removeprefix(f"{value}: ")
      raise flags.ValidationError(message) from error
    return True

  flags.register_validator(holder.name, validator)
  return holder


def define_out_dir(
  default: str | None, *, required: bool = True
) -> flags.FlagHolder[str]:
  """The flag `--out_dir`; `required` says whether, if it has no default."""
  holder = flags.DEFINE_string(
    "out_dir",
    default,
    "Folder to write into.",
    required=required and default is None,
  )
  return _validated(holder, lambda path: check_output(path, folder=True))


def define_compilation_cache_dir() -> flags.FlagHolder[str]:
  """The flag of `devices.keep_compiled_programs`."""
  holder = flags.DEFINE_string(
    "compilation_cache_dir",
    None,
    "Folder of compiled programs: what one run compiles, later ones of the same"
    " versions and kind of device read. None is kept if omitted.",
  )
  return _validated(holder, lambda path: check_output(path, folder=True))


def define_out_file(
  name: str, default: str | None, help_text: str, suffixes: tuple[str, ...] = ()
) -> flags.FlagHolder[str]:
  """A flag that names a file to write, ending in one of `suffixes` if any."""

  def check(path):
    if path and suffixes and os.path.splitext(path)[1] not in suffixes:
      raise InputError(f"expected a name ending in {' or '.join(suffixes)}.")
    check_output(path, folder=False)

  return _validated(flags.DEFINE_string(name, default, help_text), check)


def define_in_file(
  name: str,
  default: str | None,
  help_text: str,
  expected: str,
  instead: str | None = None,
  *,
  required: bool = True,
) -> flags.FlagHolder[str]:
  """A flag that names a file to read.

  Args:
    name: of the flag.
    default: of the flag.
    help_text: of the flag.
    expected: what the file should be, see `io.require_file`.
    instead: a word that may be given in place of a file.
    required: whether it must be given, if it has no default.
  """

  def check(path):
    if path != instead:
      require_file(path, expected)

  holder = flags.DEFINE_string(
    name, default, help_text, required=required and default is None
  )
  return _validated(holder, check)


def define_in_dir(
  name: str, default: str | None, help_text: str
) -> flags.FlagHolder[str]:
  """A flag that names a folder to read; not required."""

  def check(path):
    if not os.path.isdir(path):
      found = "a file" if os.path.exists(path) else "no such folder"
      raise InputError(f"expected a folder, found {found}.")

  # absl's logging has a flag log_dir, unused here.
  holder = flags.DEFINE_string(name, default, help_text, allow_override=True)
  return _validated(holder, check)


def define_seed(
  name: str, default: int | None, help_text: str
) -> flags.FlagHolder[int]:
  """A flag for a seed, see `io.check_seed`."""
  return flags.DEFINE_integer(name, default, help_text, 0, MAX_SEED)


def define_max_unknown_share() -> flags.FlagHolder[float]:
  """The flag of all launchers that read a KuaiRand folder."""
  return flags.DEFINE_float(
    "max_unknown_share",
    0.0,
    "Share of the log's rows that may be of users or videos that the feature"
    " files do not have; they are left out, a warning counts them.",
    0.0,
    1.0,
  )


class _Integers(flags.ArgumentParser):
  """Integers with commas between them, all in a range."""

  def __init__(self, low: int, high: int | None):
    """Takes `low` and more, to `high` if it is given."""
    self._low, self._high = low, high
    self.syntactic_help = "integers, with commas between them"

  def parse(self, argument: Any) -> list[int]:
    if not isinstance(argument, str):
      return argument
    texts = argument.split(",")
    # `int` takes underscores, spaces and the digits of other scripts, too.
    known = all(re.fullmatch("-?[0-9]+", text) for text in texts)
    values = [int(text) for text in texts] if known else []
    limit = math.inf if self._high is None else self._high
    if not values or min(values) < self._low or max(values) > limit:
      upper = "up" if self._high is None else f"to {self._high}"
      raise ValueError(
        f"expected integers from {self._low} {upper}, with commas between them"
      )
    return values


def define_integers(
  name: str,
  default: Sequence[int],
  help_text: str,
  low: int = 1,
  high: int | None = None,
) -> flags.FlagHolder[list[int]]:
  """A flag of one integer or more."""
  return flags.DEFINE(
    _Integers(low, high),
    name,
    list(default),
    help_text,
    serializer=flags.CsvListSerializer(","),
  )


def define_seeds() -> flags.FlagHolder[list[int]]:
  """The flag `--seeds` of a study that makes all of its own."""
  return define_integers(
    "seeds",
    [0],
    "Seeds; each decides users, synthetic world, logs and learners.",
    low=0,
    high=MAX_SEED,
  )


def numbers(flag: str, texts: Sequence[str]) -> list[float]:
  """The numbers that a flag's texts are; infinity is one, NaN is none.

  Raises:
    InputError: a text is no number.
  """
  for text in texts:
    # `float` takes underscores, spaces and the digits of other scripts, too.
    known = re.fullmatch(
      r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf", text.lower(), re.A
    )
    if not known:
      raise InputError(f"--{flag}: expected a number, found {text!r}.")
  return [float(text) for text in texts]
