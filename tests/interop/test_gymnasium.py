"""The Gymnasium environments keep Gymnasium's promises and the package's."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

gymnasium = pytest.importorskip(
  "gymnasium", reason="the extra `gymnasium` is not installed"
)
env_checker = pytest.importorskip("gymnasium.utils.env_checker")

from mtf_jax.interop import functional  # noqa: E402
from mtf_jax.interop import gymnasium as interop  # noqa: E402
from mtf_jax.io import InputError  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def _linear(params, observation, rng_key):
  del rng_key
  return 0.3 * jnp.tanh(params @ observation)


@pytest.fixture(scope="module")
def box(small_world):
  """Settings of an environment whose actions deviate from a policy."""
  shape = (10, len(small_world.observation_names))
  return {
    "baseline": _linear,
    "baseline_params": 0.2 * jax.random.normal(jax.random.key(1), shape),
  }


def _make(world, **settings):
  return gymnasium.make(interop.ID, world=world, **settings)


@pytest.mark.parametrize("boxed", [False, True])
def test_passes_gymnasiums_checker(small_world, box, boxed):
  made = _make(small_world, **(box if boxed else {}))
  env_checker.check_env(made.unwrapped)


def _episodes(environment, seed, count, action):
  """Observations, rewards and ends of some sessions."""
  seen = []
  for number in range(count):
    observation, _ = environment.reset(seed=seed if number == 0 else None)
    assert observation in environment.observation_space
    while True:
      observation, reward, terminated, truncated, info = environment.step(
        action
      )
      assert observation in environment.observation_space
      groups = info["reward_groups"]
      assert reward == pytest.approx(groups.sum(), rel=1e-4, abs=1e-5)
      seen.append((observation, reward, terminated, truncated))
      if terminated or truncated:
        break
  return seen


def test_a_seed_decides_the_sessions_and_they_end_rightly(small_world):
  made = _make(small_world, max_requests=4)
  action = made.action_space.sample()
  first = _episodes(made, 5, 12, action)
  again = _episodes(made, 5, 12, action)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  other = _episodes(made, 6, 1, action)
  assert not np.array_equal(first[0][0], other[0][0])
  lengths, length = [], 0
  for _, _, terminated, truncated in first:
    length += 1
    assert not (terminated and truncated)
    assert truncated == (length == 4 and not terminated)
    if terminated or truncated:
      lengths.append(length)
      length = 0
  assert min(lengths) < 4 and max(lengths) == 4


def test_single_equals_the_functional_form(small_world, box):
  made = _make(small_world, **box).unwrapped
  environment, params = functional.make(small_world, **box)
  first, _ = made.reset(seed=3)
  # The same draw of the same generator.
  rng, _ = gymnasium.utils.seeding.np_random(3)
  key = jax.random.key(int(rng.integers(2**32)))
  world_key, _ = jax.random.split(key)
  observation, state = environment.reset(world_key, params)
  np.testing.assert_allclose(first, observation, rtol=1e-6)
  action = np.linspace(-1, 1, 10).astype(np.float32)
  step_env = jax.jit(environment.step_env)
  for _ in range(3):
    found, reward, *_, info = made.step(action)
    observation, state, expected, _, inside = step_env(
      jax.random.key(0), state, action, params
    )
    np.testing.assert_allclose(found, observation, rtol=1e-5)
    assert reward == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(
      info["fusion_action"], inside["fusion_action"], rtol=1e-5
    )


def test_vector_steps_many_and_replaces_what_ended(small_world):
  many = gymnasium.make_vec(
    interop.ID, num_envs=16, world=small_world, max_requests=3
  )
  assert many.metadata["autoreset_mode"].value == "SameStep"
  first, _ = many.reset(seed=2)
  assert first in many.observation_space
  assert len(np.unique(first, axis=0)) == 16
  many.action_space.seed(0)
  actions = many.action_space.sample()
  ends, steps = 0, np.zeros(16, int)
  records = [first]
  for _ in range(6):
    observation, reward, terminated, truncated, info = many.step(actions)
    records += [observation, reward, terminated, truncated]
    assert observation in many.observation_space
    assert (reward.shape, reward.dtype) == ((16,), np.float64)
    steps += 1
    np.testing.assert_array_equal(truncated, (steps == 3) & ~terminated)
    done = terminated | truncated
    requests = np.round(np.expm1(observation[:, 10]))
    np.testing.assert_array_equal(requests, np.where(done, 0, steps))
    if done.any():
      np.testing.assert_array_equal(info["_final_obs"], done)
      for place in range(16):
        final = info["final_obs"][place]
        assert (final is None) == (not done[place])
        if done[place]:
          assert final in many.single_observation_space
          assert np.expm1(final[10]) == pytest.approx(steps[place], rel=1e-4)
    ends += done.sum()
    steps[done] = 0
  assert ends > 16
  # The same seed gives the same again.
  other = interop.SessionVectorEnv(16, small_world, max_requests=3)
  again = [other.reset(seed=2)[0]]
  for _ in range(6):
    again += other.step(actions)[:4]
  jax.tree.map(np.testing.assert_array_equal, records, again)


def test_the_name_alone_makes_a_synthetic_world(monkeypatch, small_world):
  made = []

  def synthetic_world(size, seed):
    made.append((size, seed))
    return small_world

  monkeypatch.setattr(interop.synthetic, "synthetic_world", synthetic_world)
  gymnasium.make(f"mtf_jax.interop.gymnasium:{interop.ID}", world_seed=4)
  assert made == [("small", 4)]


def test_refusals(small_world, tmp_path):
  with pytest.raises(InputError, match=r"world: expected .* no such file"):
    interop.SessionEnv(str(tmp_path / "none.world"))
  with pytest.raises(InputError, match="num_envs: expected 1 or more, found 0"):
    interop.SessionVectorEnv(0, small_world)
  single = interop.SessionEnv(small_world)
  many = interop.SessionVectorEnv(2, small_world)
  with pytest.raises(gymnasium.error.ResetNeeded, match="call reset first"):
    single.step(np.zeros(10))
  with pytest.raises(gymnasium.error.ResetNeeded, match="call reset first"):
    many.step(np.zeros((2, 10)))
  single.reset(seed=0)
  many.reset(seed=0)
  with pytest.raises(InputError, match=r"action: expected shape \(10,\)"):
    single.step(np.zeros(3))
  with pytest.raises(InputError, match=r"action: expected shape \(2, 10\)"):
    many.step(np.zeros(10))


def test_without_the_package_one_sentence_says_what_brings_it():
  code = (
    "import sys; sys.modules['gymnasium'] = None\n"
    "import mtf_jax, mtf_jax.interop.functional\n"
    "try:\n  import mtf_jax.interop.gymnasium\n"
    "except ImportError as error:\n  print(type(error).__mro__, error)"
  )
  done = subprocess.run(
    (sys.executable, "-c", code), capture_output=True, text=True, check=True
  )
  assert "InputError" in done.stdout
  assert "gymnasium: expected an installed package, found none" in done.stdout
  assert "mtf-jax[gymnasium]" in done.stdout
