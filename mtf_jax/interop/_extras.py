"""The sentence that says which package is missing and what brings it."""

from mtf_jax.io import InputError


class MissingExtra(InputError, ImportError):
  """A package that an extra brings is not installed.

  Launchers print it as any `InputError`; `except ImportError` meets it as well.
  """


def missing(package: str) -> MissingExtra:
  """The refusal to go on without a package.

  Args:
    package: its name, which is the extra's, too.

  Returns:
    The exception, to be raised.
  """
  return MissingExtra(
    f"{package}: expected an installed package, found none; the extra"
    f" `{package}` brings it (pip install 'mtf-jax[{package}]')."
  )
