"""Hooks of the documentation site: pages from outside `docs`, API pages.

The pages are written for reading in the repository: links go from file to file.
Here the files outside `docs` join the site, links follow them, and every room
of the package gets a page of the API reference. A new module needs no entry
anywhere; a new room needs one in the navigation of `mkdocs.yml`, and a strict
build fails without.
"""

import ast
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).parents[1]

# Path in the repository -> path in the site.
_MOVED = {
  "README.md": "index.md",
  "docs/index.md": "pages.md",
  "BUILD_NOTES.md": "build_notes.md",
  "CONTRIBUTING.md": "contributing.md",
  "CHANGELOG.md": "changelog.md",
  **{
    path.relative_to(_ROOT).as_posix(): f"figures/{path.name}"
    for path in (_ROOT / "experiments" / "figures").glob("*.png")
  },
}
_PACKAGE = _ROOT / "mtf_jax"
_TITLES = {"io": "Files"}  # Where it is not the name of the room.
# Target of a Markdown link or picture.
_TARGET = re.compile(r"(?<=\]\()([^)\s#]+)")
_INLINE_CODE = re.compile(r"<code>[^<]*--[^<]*</code>")


def _in_site(path: str) -> str:
  return _MOVED.get(path, path.removeprefix("docs/"))


def _in_repository(path: str) -> str:
  for before, after in _MOVED.items():
    if path == after:
      return before
  return f"docs/{path}"


def _kernel_names() -> str:
  """The names importable from `mtf_jax`, each linked to its entry."""
  tree = ast.parse((_ROOT / "mtf_jax/__init__.py").read_text(encoding="utf-8"))
  links = [
    f"[`{alias.name}`][{node.module}.{alias.name}]"
    for node in tree.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  ]
  return "All importable from `mtf_jax`: " + ",\n".join(links) + ".\n\n"


def _rooms() -> list[pathlib.Path]:
  """The packages and modules of `mtf_jax`."""
  return [
    path
    for path in sorted(_PACKAGE.iterdir())
    if not path.name.startswith("_")
    and (path.suffix == ".py" or (path / "__init__.py").exists())
  ]


def _api_page(room: pathlib.Path) -> str:
  title = _TITLES.get(room.stem, room.stem.capitalize())
  parts = [f"# {title}\n\n"]
  if room.stem == "kernels":
    parts.append(_kernel_names())
  modules = sorted(room.rglob("*.py")) if room.is_dir() else [room]
  for path in modules:
    if not path.stem.startswith("_"):
      name = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
      parts.append(f"::: {name}\n\n")
  return "".join(parts)


def on_files(files, config):
  """Adds the pages and pictures from elsewhere, and the API's pages."""
  for file in [file for file in files if file.src_uri == "index.md"]:
    files.remove(file)
  for before, after in _MOVED.items():
    files.append(
      File.generated(config, after, abs_src_path=str(_ROOT / before))
    )
  for room in _rooms():
    page = f"api/{room.stem}.md"
    files.append(File.generated(config, page, content=_api_page(room)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Turns links between files of the repository into links of the site."""
  here = posixpath.dirname(_in_repository(page.file.src_uri))
  start = posixpath.dirname(page.file.src_uri) or "."

  def move(match):
    target = match.group()
    if ":" in target:
      return target
    path = posixpath.normpath(posixpath.join(here, target))
    return posixpath.relpath(_in_site(path), start)

  return _TARGET.sub(move, markdown)


def on_page_content(html, page, config, files):
  """Keeps a flag in running text in one piece: lines break after hyphens."""

  def keep(match):
    flag = r'<span class="flag">\g<0></span>'
    return re.sub(r"--\w+", flag, match.group())

  return _INLINE_CODE.sub(keep, html)
