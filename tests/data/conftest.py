"""A small folder in KuaiRand's layout for all tests of its reader."""

import shutil

import kuairand_files
import pytest


@pytest.fixture(scope="package")
def template(tmp_path_factory):
  """40 users, 30 videos and 200 impressions in each of two files; read only."""
  folder = tmp_path_factory.mktemp("template")
  kuairand_files.write_folder(folder, num_users=40, num_items=30, num_rows=400)
  return folder


@pytest.fixture
def folder(template, tmp_path):
  """A copy of it to change."""
  return shutil.copytree(template, tmp_path / "log")
