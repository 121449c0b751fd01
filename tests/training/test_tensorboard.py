import pytest
from tensorboard.compat.proto.event_pb2 import Event

from selfie_jax.data.tfrecord import frame, scan
from selfie_jax.files import as_path
from selfie_jax.training.monitoring.tensorboard import cut_events
from tests.object_stores import _gcs_settings, gcs  # noqa: F401


def write_events(path, steps):
  """An event file as TensorFlow writes it: its version, then the scalars."""
  events = [Event(wall_time=1.0, file_version='brain.Event:2')]
  for step in steps:
    event = Event(wall_time=1_000.0 + step, step=step)
    event.summary.value.add(tag='loss', simple_value=step)
    events.append(event)
  path.write_bytes(b''.join(frame(event.SerializeToString()) for event in events))


def times(path):
  """The wall time of each step in a file."""
  events = [Event.FromString(data) for _, data in scan(path)]
  assert events[0].file_version
  return {event.step: event.wall_time for event in events[1:]}


@pytest.mark.parametrize('place', ['tmp_path', 'gcs'])
def test_events_of_steps_that_are_taken_again_go_and_nothing_else(place, request):
  folder = as_path(request.getfixturevalue(place))
  first, second, third = (folder / f'events.out.tfevents.{i}.host.1.v2' for i in range(3))
  write_events(first, (2, 4))
  write_events(second, (6, 8, 10))
  write_events(third, (12,))
  (folder / 'metrics.jsonl').write_text('{}')
  second.write_bytes(second.read_bytes() + frame(b'killed while writing')[:-7])
  before = first.read_bytes()
  cut_events(folder, 8)
  assert first.read_bytes() == before
  assert times(second) == {6: 1_006.0, 8: 1_008.0}
  assert not third.exists()
  assert (folder / 'metrics.jsonl').exists()


def test_a_file_that_was_killed_before_its_first_record_goes(tmp_path):
  for number, data in enumerate((b'', b'\x00' * 5, b'\x00' * 500)):
    (tmp_path / f'events.out.tfevents.{number}').write_bytes(data)
  cut_events(as_path(tmp_path), 8)
  assert not list(tmp_path.iterdir())
