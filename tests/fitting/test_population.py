"""Synthetic populations: reproducible, log-like, checked at load."""

import json

import kuairand_files
import numpy as np
import pytest

from mtf_jax.data import behaviours
from mtf_jax.fitting import population


def test_same_seed_same_model():
  first, second, other = (
    population.synthetic_response(np.random.default_rng(seed), 30, 20)
    for seed in (1, 1, 2)
  )
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(first.user_interest, other.user_interest)
  assert first.num_users == 30
  assert first.num_items == 20
  assert {np.asarray(leaf).dtype.name for leaf in first} == {
    "float32",
    "int32",
  }


def test_log_like_impressions_have_the_published_rates():
  """Rates of the whole KuaiRand-Pure standard log (KuaiSim's notebook).

  Impressions are drawn in proportion to exp(reach), as the reach was fitted.
  One published figure guards against firing too often by a factor, not against
  a few percent: the population differs from draw to draw.
  """
  rng = np.random.default_rng(0)
  model = population.synthetic_response(rng, 3000, 1500)
  users = rng.integers(3000, size=400_000)
  items = rng.integers(1500, size=400_000)
  reach = np.sum(model.user_factors[users] * model.item_factors[items], axis=-1)
  best = np.argsort(-(reach + rng.gumbel(size=len(reach))))[:80_000]
  found = kuairand_files.simulate(model, users[best], items[best], 4)
  rates = dict(zip(behaviours.BEHAVIOURS, found.mean(axis=0), strict=True))
  for name, published in (
    ("click", 0.4597),
    ("long_view", 0.3318),
    ("like", 0.01848),
    ("comment", 0.002546),
    ("follow", 0.001074),
    ("forward", 0.000962),
  ):
    assert 0.6 * published < rates[name] < 1.6 * published, name


def test_saved_population_is_loaded_again(tmp_path):
  embedded = population.load_population()
  path = tmp_path / "population.json"
  population.save_population(embedded, path, "a test")
  for a, b in zip(embedded, population.load_population(path), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("play_table", [[0.0]], "play_table: expected .*shape"),
    ("reach_scale", None, "reach_scale: expected finite"),
    ("residual_scale", [1.0, 2.0], "residual_scale: expected finite"),
  ],
)
def test_bad_population_file(tmp_path, field, value, message):
  path = tmp_path / "population.json"
  population.save_population(population.load_population(), path, "a test")
  fields = json.loads(path.read_text())
  fields[field] = value
  path.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=message):
    population.load_population(path)


def test_not_json(tmp_path):
  path = tmp_path / "population.json"
  path.write_text("{")
  with pytest.raises(ValueError, match="expected JSON"):
    population.load_population(path)


def test_bad_counts():
  with pytest.raises(ValueError, match="num_items: expected at least 1"):
    population.synthetic_response(np.random.default_rng(0), 3, 0)
