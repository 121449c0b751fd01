"""The tasks of speech: which language, which voice, which syllable."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.study.public_data.folders import Clip, clean
from tests.study.public_data.packages import Unpacked
from tests.study.public_data.sounds import decode, find_recordings
from tests.study.public_data.splits import digest, split_of

TUXPAINT = 'tuxpaint-stamps-default'
KTUBERLING = 'ktuberling-data'
HEDGEWARS = 'hedgewars-data'
GCIN = 'gcin-voice'
LANGUAGES = frozenset(('be', 'bg', 'ca', 'da', 'el', 'es', 'fr', 'ro', 'ru'))
_UNSEEN = 'test_unseen_voice'


def prompts_package(language: str) -> str:
  """Returns the name of the package of Asterisk's spoken prompts."""
  return f'asterisk-core-sounds-{language}-g722'


# Of these languages, some prompts are held out: see `held_out_prompts`.
PROMPTS = {prompts_package(language): language for language in ('fr', 'ru', 'es')}
LANGUAGE_PACKAGES = (TUXPAINT, KTUBERLING, *PROMPTS)


# ------------------------------------------------------------------------------------------------------------- language


def language_clips(packages: Unpacked) -> Iterator[Clip]:
  """Yields spoken descriptions in nine languages, and other speakers and recording chains for `test_unseen_voice`."""
  yield from _stamps(packages[TUXPAINT])
  for path in find_recordings(packages[KTUBERLING]):
    language = path.parent.name
    if language in LANGUAGES:
      name = f'ktuberling/{language}_{clean(path.stem)}'
      yield _unseen_voice(name, path, language, KTUBERLING, shortest=0.3)
  for package, language in PROMPTS.items():
    for path in held_out_prompts(packages[package]):
      place = path.relative_to(packages[package]).with_suffix('').as_posix().split('sounds/')[-1]
      yield _unseen_voice(f'asterisk/{language}_{clean(place)}', path, language, package, shortest=0.4)


def without_silence(folder: Path) -> list[Path]:
  """Returns a package's recordings, but those that are called silence."""
  return [path for path in find_recordings(folder) if 'silence' not in path.relative_to(folder).as_posix()]


def held_out_prompts(folder: Path) -> list[Path]:
  """Returns the prompts that `language` tests on: every fourth. The others are free for pre-training."""
  return without_silence(folder)[::4]


def _stamps(folder: Path) -> Iterator[Clip]:
  """Yields the descriptions of pictures. A picture, with its variants, has one split in all languages."""
  for path in find_recordings(folder, ('.ogg',)):
    found = re.fullmatch(r'(.*)_desc_([a-z]{2})\.ogg', path.name)
    if not found or found[2] not in LANGUAGES:
      continue
    picture, language = found.groups()
    stamp = f'{path.parent.relative_to(folder).as_posix().split("stamps/")[-1]}/{picture}'
    key = re.sub(r'[_0-9]+$|_(left|right|open|closed)$', '', stamp)
    columns = {'split': split_of(key), 'label': language, 'group': clean(stamp), 'source': TUXPAINT}
    yield Clip(f'tuxpaint/{language}_{clean(stamp)}', decode(path), columns, longest=6)


def _unseen_voice(name: str, path: Path, language: str, package: str, shortest: float) -> Clip:
  columns = {'split': _UNSEEN, 'label': language, 'group': '', 'source': package}
  return Clip(name, decode(path), columns, shortest, longest=6)


# ---------------------------------------------------------------------------------------------------------------- voice


def voice_clips(packages: Unpacked) -> Iterator[Clip]:
  """Yields phrases that the teams of a game speak. A phrase has one split, whoever says it."""
  folder = packages[HEDGEWARS]
  paths = [path for path in find_recordings(folder, ('.ogg',)) if is_voice(path.relative_to(folder))]
  ranked = sorted({_phrase(path) for path in paths}, key=digest)
  split = {phrase: _split_of_rank(rank) for rank, phrase in enumerate(ranked)}
  for path in paths:
    voice = path.parent.name
    columns = {'split': split[_phrase(path)], 'label': voice, 'phrase': path.stem, 'source': HEDGEWARS}
    yield Clip(f'{voice}_{clean(path.stem)}', decode(path), columns, longest=5)


def is_voice(path: Path) -> bool:
  """True of a file of `voice`, by its path in its package."""
  return 'voices' in path.parts[:-1]


def _phrase(path: Path) -> str:
  """Returns what is said: several recordings of it are numbered."""
  return re.sub(r'\d+$', '', path.stem).lower()


def _split_of_rank(rank: int) -> str:
  """Returns test for a quarter of the phrases, valid for 15 %."""
  if rank % 20 < 5:
    return 'test'
  return 'valid' if rank % 20 < 8 else 'train'


# ------------------------------------------------------------------------------------------------------------- Mandarin


def tone_clips(packages: Unpacked) -> Iterator[Clip]:
  """Yields syllables that two voices read, labelled by their tone. A syllable has one split in all its tones."""
  for name, path, columns in _syllables(packages[GCIN]):
    yield Clip(name, decode(path), {'label': f'tone{columns["tone"]}'} | columns, longest=2)


def initial_clips(packages: Unpacked) -> Iterator[Clip]:
  """Yields those of the syllables that begin with a consonant, labelled by it."""
  for name, path, columns in _syllables(packages[GCIN]):
    initial = columns['syllable'][0]
    if 'ㄅ' <= initial <= 'ㄙ':  # The consonants of Bopomofo, in Unicode's order.
      yield Clip(name, decode(path), {'label': initial} | columns, longest=2)


def _syllables(folder: Path) -> Iterator[tuple[str, Path, dict[str, str]]]:
  """Yields each clip's name, its file, and what both tasks say of it."""
  for path in find_recordings(folder, ('.ogg',)):
    written, voice = path.parent.name, path.stem
    if written.endswith('1'):  # The neutral tone has 13 files: too few.
      continue
    tone = written[-1] if written[-1] in '234' else '1'  # The first tone is not written.
    syllable = re.sub(r'[234]$', '', written)
    letters = ''.join(f'{ord(letter):04x}' for letter in syllable)
    columns = {'syllable': syllable, 'tone': tone, 'voice': voice, 'split': split_of(syllable, salt='t1')}
    yield f'u{letters}_t{tone}_v{voice}', path, columns | {'source': GCIN}
