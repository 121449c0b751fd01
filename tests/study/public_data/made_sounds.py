"""Small files for the tests: noise, and a sound bank of one note."""

import struct

import av
import numpy as np
import soundfile

from tests.study.public_data.sounds import SAMPLE_RATE


def noise(seed, seconds=0.5, level=0.1):
  return (level * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def write_sound(path, seed, seconds=0.5):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, noise(seed, seconds), SAMPLE_RATE)


def write_g722(path, seed):
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w', format='g722') as container:
    stream = container.add_stream('g722', rate=SAMPLE_RATE, layout='mono')
    samples = (noise(seed) * 32_767).astype(np.int16).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(samples, format='s16', layout='mono')
    frame.sample_rate = SAMPLE_RATE
    container.mux([*stream.encode(frame), *stream.encode(None)])


def chunk(name, content):
  return name + struct.pack('<I', len(content)) + content + b'\0' * (len(content) % 2)


def write_soundfont(path, low_key, high_key):
  """A bank with one preset, of one looped second of 440 Hz that was recorded at key 69."""
  records = {
    b'phdr': [
      struct.pack('<20sHHHIII', b'Flute', 73, 0, 0, 0, 0, 0),
      struct.pack('<20sHHHIII', b'EOP', 0, 0, 1, 0, 0, 0),
    ],
    b'pbag': [struct.pack('<HH', 0, 0), struct.pack('<HH', 1, 0)],
    b'pmod': [bytes(10)],
    b'pgen': [struct.pack('<HH', 41, 0), bytes(4)],
    b'inst': [struct.pack('<20sH', b'Flute', 0), struct.pack('<20sH', b'EOI', 2)],
    # The first zone leads to no recording: it holds the default of the others, to loop.
    b'ibag': [struct.pack('<HH', 0, 0), struct.pack('<HH', 1, 0), struct.pack('<HH', 3, 0)],
    b'imod': [bytes(10)],
    b'igen': [
      struct.pack('<HH', 54, 1),
      struct.pack('<HBB', 43, low_key, high_key),
      struct.pack('<HH', 53, 0),
      bytes(4),
    ],
    b'shdr': [
      struct.pack('<20sIIIIIBbHH', b'A', 0, 44_100, 441, 44_100 - 441, 44_100, 69, 0, 0, 1),
      struct.pack('<20sIIIIIBbHH', b'EOS', 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ],
  }
  wave = (8_000 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)).astype('<i2')
  info = chunk(b'ifil', struct.pack('<HH', 2, 1)) + chunk(b'isng', b'EMU8000\0') + chunk(b'INAM', b'Tiny\0\0')
  parts = b''.join(chunk(name, b''.join(content)) for name, content in records.items())
  lists = (b'INFO' + info, b'sdta' + chunk(b'smpl', wave.tobytes() + bytes(92)), b'pdta' + parts)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(chunk(b'RIFF', b'sfbk' + b''.join(chunk(b'LIST', content) for content in lists)))
