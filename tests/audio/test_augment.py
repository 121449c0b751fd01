"""Each augmentation against a plain NumPy version, and its random numbers against their distributions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from selfie_jax.audio import augment
from selfie_jax.config import Augment
from tests.processes import run_python

OFF = Augment(mixup_ratio=0.0, resize_frequency=(1.0, 1.0), resize_time=(1.0, 1.0), canvas_time=1.0, fader=0.0)
EPS = np.finfo(np.float32).eps


def spectrograms(batch, n_mels=64, frames=96, seed=0):
  return np.random.default_rng(seed).standard_normal((batch, n_mels, frames)).astype(np.float32)


compiled = jax.jit(augment.augment, static_argnums=2)


def view(x, settings, seed=0):
  return np.asarray(compiled(jax.random.key(seed), jnp.asarray(x), settings))


def test_with_all_strengths_zero_a_view_is_the_spectrogram():
  x = spectrograms(8)
  np.testing.assert_array_equal(view(x, OFF), x)


def test_both_views_are_normalised_by_what_all_their_values_have_in_common():
  views = np.random.default_rng(0).normal(-3, 2, (2, 4, 8, 6)).astype(np.float32)
  views[1] += 1
  found = np.stack(augment.normalize_together(*views))
  np.testing.assert_allclose(found, (views - views.mean(dtype=np.float64)) / views.std(dtype=np.float64), atol=1e-5)
  np.testing.assert_array_equal(np.stack(augment.normalize_together(*np.full((2, 4, 8, 6), 3, np.float32))), 0)


def test_two_views_differ_and_each_is_a_function_of_the_key():
  x = jnp.asarray(spectrograms(16))
  two_views = jax.jit(augment.two_views, static_argnums=3)
  first, second = two_views(jax.random.key(0), x, x, Augment(noise=0.2))
  assert first.shape == second.shape == x.shape
  assert all((abs(first[i] - second[i]) > 0.01).any() for i in range(16))
  again = two_views(jax.random.key(0), x, x, Augment(noise=0.2))
  np.testing.assert_array_equal(first, again[0])
  np.testing.assert_array_equal(second, again[1])
  other, _ = two_views(jax.random.key(1), x, x, Augment(noise=0.2))
  assert all((abs(first[i] - other[i]) > 0.01).any() for i in range(16))


# Mixup.


def test_mix_adds_energies():
  x, other = spectrograms(5), spectrograms(5, seed=1)
  share = np.array([0, 0.1, 0.5, 0.9, 1])
  expected = [np.log((1 - a) * np.exp(p) + a * np.exp(q) + EPS) for p, q, a in zip(x, other, share, strict=True)]
  ours = augment.mix(jnp.exp(x), jnp.exp(other), jnp.asarray(share))
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def partners(batch, group, seed=0):
  """Who is mixed in, by giving each example its own number as its only value."""
  numbers = jnp.arange(batch, dtype=jnp.float32).reshape(-1, 1, 1)
  u = jax.random.uniform(jax.random.key(seed), (batch,))
  return np.asarray(augment.group_partners(numbers, u, group))[:, 0, 0].astype(int)


def test_a_partner_is_another_example_of_the_same_group_each_as_likely():
  group, batch = 8, 8 * 2_000
  partner, example = partners(batch, group), np.arange(batch)
  np.testing.assert_array_equal(partner // group, example // group)
  offset = (partner - example) % group
  counts = np.bincount(offset, minlength=group)
  assert counts[0] == 0  # Nobody is their own partner.
  assert scipy.stats.chisquare(counts[1:]).pvalue > 0.001


def test_mixup_shares_are_uniform_up_to_the_ratio():
  # Of two constant examples, 0 and log(1000), the view tells the share.
  x = np.zeros((4_000, 2, 2), np.float32)
  x[1::2] = np.log(1_000)
  mixed = view(x, Augment(**(vars(OFF) | {'mixup_ratio': 0.2, 'mixup_group': 2})))[::2, 0, 0]
  share = (np.exp(mixed) - 1) / 999
  assert scipy.stats.kstest(share, scipy.stats.uniform(0, 0.2).cdf).pvalue > 0.001


def test_a_group_that_does_not_divide_the_batch_is_refused():
  with pytest.raises(ValueError, match='group of 16 does not divide the batch of 24'):
    view(spectrograms(24), Augment())


def test_an_example_depends_on_its_own_group_only():
  settings = Augment(mixup_group=4, noise=0.3)
  x = spectrograms(8)
  changed = x.copy()
  changed[4:] += 1
  np.testing.assert_array_equal(view(changed, settings)[:4], view(x, settings)[:4])


# Random resize crop.


def cubic(distance):
  """Keys's kernel with a = -0.75, as in PyTorch."""
  d = abs(distance)
  if d <= 1:
    return 1.25 * d**3 - 2.25 * d**2 + 1
  return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def resize_axis(values, size):
  """Bicubic resampling of a 1-D array to `size` points, ends aligned, edges replicated."""
  resized = []
  for point in range(size):
    source = point * (len(values) - 1) / (size - 1)
    taps = range(int(np.floor(source)) - 1, int(np.floor(source)) + 3)
    resized.append(sum(cubic(source - tap) * values[min(max(tap, 0), len(values) - 1)] for tap in taps))
  return np.array(resized)


def resize_crop(x, top, height, left, width, canvas_frames):
  """The crop of a zero canvas with `x` in its middle, resized to the shape of `x`."""
  canvas = np.zeros((x.shape[0], canvas_frames))
  margin = (canvas_frames - x.shape[1]) // 2
  canvas[:, margin : margin + x.shape[1]] = x
  crop = canvas[top : top + height, left : left + width]
  crop = np.apply_along_axis(resize_axis, 0, crop, x.shape[0])
  return np.apply_along_axis(resize_axis, 1, crop, x.shape[1])


def test_random_resize_crop_is_a_bicubic_resize_of_a_crop_of_the_canvas():
  batch, n_mels, frames, canvas_frames = 24, 16, 24, 36
  x = spectrograms(batch, n_mels, frames)
  u = np.random.default_rng(1).uniform(size=(4, batch)).astype(np.float32)
  u[:, 0], u[:, 1] = 0, np.nextafter(1, 0, dtype=np.float32)  # The smallest and the greatest crop.
  resize = jax.jit(augment.random_resize_crop, static_argnums=(2, 3, 4))
  ours = resize(x, u, (0.01, 1.5), (0.01, 1.8), 1.5)
  for i in range(batch):
    height = int(np.clip(np.floor((0.01 + 1.49 * u[0, i]) * n_mels), 1, n_mels))
    width = int(np.clip(np.floor((0.01 + 1.79 * u[2, i]) * frames), 1, canvas_frames))
    top, left = int(u[1, i] * (n_mels - height + 1)), int(u[3, i] * (canvas_frames - width + 1))
    expected = resize_crop(x[i], top, height, left, width, canvas_frames)
    np.testing.assert_allclose(ours[i], expected, rtol=0, atol=1e-5, err_msg=f'{height} x {width} at {top}, {left}')


@pytest.mark.parametrize('resize', [augment.resize_rows_by_taps, augment.resize_rows_by_matrix])
def test_rows_are_resized_alike_on_cpus_and_on_accelerators(resize):
  # Spans within the axis, over its ends and past them, which are zeros.
  tops, heights = np.array([0, 0, 5, -7, 10, -30, 16, 63]), np.array([64, 1, 38, 64, 60, 144, 2, 2])
  x = np.random.default_rng(0).standard_normal((len(tops), 64, 24))
  ours = jax.jit(resize)(x.astype(np.float32), tops, heights)
  padded = np.pad(x, ((0, 0), (64, 64 + 24), (0, 0)))
  for i, (top, height) in enumerate(zip(tops, heights, strict=True)):
    expected = np.apply_along_axis(resize_axis, 0, padded[i, 64 + top : 64 + top + height], 64)
    np.testing.assert_allclose(ours[i], expected, rtol=0, atol=5e-6, err_msg=f'{height} from {top}')
  np.testing.assert_array_equal(ours[0], x[0].astype(np.float32))  # The whole axis is exactly itself.


@pytest.mark.parametrize(('platform', 'products'), [('cpu', 1), ('tpu', 2), ('cuda', 2)])
def test_rows_are_picked_on_cpus_and_multiplied_elsewhere(platform, products):
  traced = jax.jit(augment.random_resize_crop, static_argnums=(2, 3, 4)).trace(
    spectrograms(4), np.zeros((4, 4), np.float32), (0.6, 1.5), (0.6, 1.5), 1.5
  )
  assert traced.lower(lowering_platforms=(platform,)).as_text().count('stablehlo.dot_general') == products


@pytest.mark.parametrize('length', [1, 2, 38, 64, 144])
def test_bicubic_weights_are_plain_numpys(length):
  ours = augment.bicubic_matrix(jnp.array([0]), jnp.array([length]), length, 64)[0]
  np.testing.assert_allclose(ours, np.stack([resize_axis(row, 64) for row in np.eye(length)], axis=1), atol=1e-6)


def test_without_frequency_resize_the_frequency_axis_is_untouched():
  x = np.tile(spectrograms(16, frames=1), (1, 1, 96))  # Constant over time, so a crop over time shows nothing else.
  settings = Augment(**(vars(OFF) | {'resize_time': (0.6, 1.0)}))
  np.testing.assert_allclose(view(x, settings), x, rtol=1e-6, atol=1e-6)
  u = jax.random.uniform(jax.random.key(0), (2, 1_000))
  height, top = augment.random_span(*u, 64, (1.0, 1.0), 64)
  identity = augment.bicubic_matrix(top, height, 64, 64)
  np.testing.assert_array_equal(identity, np.broadcast_to(np.eye(64), identity.shape))


def test_sizes_and_positions_of_crops_have_the_published_distribution():
  u = jax.random.uniform(jax.random.key(0), (4, 20_000))
  for size, canvas, u_size, u_position in ((64, 64, u[0], u[1]), (96, 144, u[2], u[3])):
    length, start = map(np.asarray, augment.random_span(u_size, u_position, size, (0.6, 1.5), canvas))
    expected = np.clip(np.floor(np.random.default_rng(0).uniform(0.6, 1.5, 200_000) * size), 1, canvas)
    assert length.min() == int(0.6 * size)
    assert length.max() == canvas - (canvas == 144)  # U(0.6, 1.5) never reaches 1.5.
    assert scipy.stats.ks_2samp(length, expected).pvalue > 0.001
    assert (start >= 0).all()
    assert (start + length <= canvas).all()
    # Uniform over the free places: the middle of the place, as a share of them, is uniform.
    free = canvas - length + 1
    room = free > 20
    assert scipy.stats.kstest(((start + 0.5) / free)[room], 'uniform').pvalue > 0.001


# Fader, equalizer and noise.


def test_fader_adds_a_line_over_time():
  x = spectrograms(3)
  start, end = np.array([0, -1, 0.5]), np.array([0, 1, -0.5])
  expected = [x[i] + np.linspace(start[i], end[i], 96) for i in range(3)]
  np.testing.assert_allclose(augment.fade(jnp.asarray(x), start, end), expected, rtol=1e-5, atol=1e-6)


def test_ends_of_the_fader_are_uniform_and_independent():
  faded = view(np.zeros((4_000, 2, 3), np.float32), Augment(**(vars(OFF) | {'fader': 0.7})))
  np.testing.assert_array_equal(faded[:, 0], faded[:, 1])
  start, end = faded[:, 0, 0], faded[:, 0, 2]
  for values in (start, end):
    assert scipy.stats.kstest(values, scipy.stats.uniform(-0.7, 1.4).cdf).pvalue > 0.001
  assert scipy.stats.pearsonr(start, end).pvalue > 0.001


def test_an_equalizer_is_a_line_between_the_gains_of_its_bands_at_all_times():
  x = spectrograms(2)
  gains = np.array([[0, 1], [2, -1], [1, 0.5]])
  expected = [x[i] + np.interp(np.linspace(0, 2, 64), range(3), gains[:, i])[:, None] for i in range(2)]
  np.testing.assert_allclose(augment.equalize(jnp.asarray(x), jnp.asarray(gains)), expected, rtol=1e-5, atol=1e-6)


def test_gains_of_the_equalizer_are_uniform_and_independent():
  equalized = view(np.zeros((4_000, 4, 3), np.float32), Augment(**(vars(OFF) | {'equalizer': 0.7})))
  np.testing.assert_array_equal(equalized[:, :, 0], equalized[:, :, 2])
  gains = equalized[:, :, 0]  # Four bands: each is one of the four knots.
  for i in range(4):
    assert scipy.stats.kstest(gains[:, i], scipy.stats.uniform(-0.7, 1.4).cdf).pvalue > 0.001
    assert scipy.stats.pearsonr(gains[:, i], gains[:, i - 1]).pvalue > 0.001
  others = jax.random.uniform(jax.random.split(jax.random.key(0))[0], (9, len(gains)))  # Of the other distortions.
  assert all(scipy.stats.pearsonr(gains[:, i], u).pvalue > 0.001 for i in range(4) for u in others)


def test_noise_has_a_uniform_share_of_the_energy():
  x = np.full((4_000, 8, 8), -30, np.float32)  # Nothing to hear but the noise.
  noisy = view(x, Augment(**(vars(OFF) | {'noise': 0.4})))
  share = np.exp(noisy).mean((1, 2)) / np.exp(0.5)  # A log-normal's mean is e^(1/2).
  gaussian = noisy - noisy.mean((1, 2), keepdims=True)
  loud = share > 0.2  # Elsewhere the eps shows.
  assert abs(gaussian[loud].std() - np.sqrt(63 / 64)) < 0.01
  assert abs(share.mean() - 0.2) < 0.01
  assert scipy.stats.kstest(gaussian[loud].ravel()[:5_000] / np.sqrt(63 / 64), 'norm').pvalue > 0.001
  assert 0.35 < np.quantile(share, 0.9) < 0.38


# Devices.


def test_values_do_not_depend_on_the_number_of_devices_and_nothing_moves_between_them():
  results = json.loads(run_python('-m', 'tests.audio.device_worker', devices=8).stdout)
  assert [result['devices'] for result in results] == [1, 2, 8]
  assert [result['collectives'] for result in results] == [[], [], []]
  for result in results[1:]:
    np.testing.assert_array_equal(result['random'], results[0]['random'])
    np.testing.assert_allclose(result['views'], results[0]['views'], rtol=0, atol=2e-6)
