"""VoxForge (http://www.voxforge.org), languages: LANGUAGE/.../SPEAKER-DATE-ID/wav/*.wav, the submissions unpacked."""

from collections.abc import Sequence

from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.lists import one_list, read_columns
from selfie_jax.evaluation.tasks.splitting import split_by_hash
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree

_LANGUAGES = {name: name for name in ('de', 'en', 'es', 'fr', 'it', 'ru')} | {'SpeechCorpus': 'en'}
_SHARES = (70, 15, 15)  # Of the submissions, as in EVAR; the draw is our own.
_WHAT = "EVAR's voxforge.csv"


def listing(tree: Tree, lists: Sequence[str] = ()) -> Listing:
  """Lists the clips; the class is the language, a group is a submission.

  With a list (columns file_name, label, split) it tells the clips, labels and splits, and the languages' folders need
  not be there. Without one, a submission is of the language of the folder nearest above it, `SpeechCorpus` being the
  English one's old name. One speaker may have many submissions, and so be in several splits: EVAR's rule.

  Raises:
    UserError: the layout is another one.
  """
  files = [file for file in tree.below('', ['.wav']) if file.count('/') >= 2]
  path = one_list(lists, _WHAT)
  if path:
    return _listed(files, path, tree.root)
  languages = {file: language for file in files if (language := _language(file))}
  if not languages:
    raise UserError(
      f'{tree.root} has no LANGUAGE/.../SPEAKER-DATE-ID/wav/*.wav with a LANGUAGE of {", ".join(_LANGUAGES)}: '
      f"unpack each language's submissions into a folder of its name, or give {_WHAT} with --lists"
    )
  splits = split_by_hash((_submission(file) for file in languages), _SHARES)
  rows = (Row(file, (language,), splits[_submission(file)], _submission(file)) for file, language in languages.items())
  notice = 'the splits are our own draw of submissions: results compare with published ones only roughly'
  left_out = len(files) - len(languages)
  more = (f'{left_out} files are in no folder of a language, and left out',) if left_out else ()
  return Listing(tuple(rows), folds=False, notices=(notice, *more))


def _listed(files: Sequence[str], path: str, root: str) -> Listing:
  table = read_columns(path, ('file_name',))
  places = {'/'.join(file.split('/')[-3:]): file for file in files}
  rows, found = [], 0
  for name, row in table.items():
    key = '/'.join(name.split('/')[-3:])
    found += key in places
    rows.append(Row(places.get(key, name), (row.get('label', ''),), row['split'], _submission(name)))
  if not found:
    raise UserError(f'{root} has none of the {len(rows)} files of {path}, such as {rows[0].source}')
  if not all(row.labels[0] for row in rows):
    raise UserError(f'{path} has rows without a "label"')
  return Listing(tuple(rows), folds=False)


def _submission(file: str) -> str:
  """Returns SPEAKER-DATE-ID: the folder above `wav`."""
  return file.split('/')[-3] if file.count('/') >= 2 else file


def _language(file: str) -> str | None:
  return next((_LANGUAGES[part] for part in reversed(file.split('/')[:-3]) if part in _LANGUAGES), None)
