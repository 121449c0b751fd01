"""The nine tasks of the published tables: what each one is, and how many clips it should have.

Units, splits and the probe's learning rates are EVAR's (https://github.com/nttcslab/eval-audio-repr), the rates those
it used for BYOL-A v2. Counts are those of the datasets' own pages and papers, or of EVAR; `remark` says which ones we
only remember, or have calculated.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Definition:
  """A task as published."""

  name: str
  title: str
  unit_seconds: float
  evar_learning_rate: float
  num_classes: int
  parts: Mapping[str, int]  # Clips of each split (train, valid, test), or of each fold ('1', '2', ...).
  split_rule: str
  url: str
  licence: str
  layout: str  # What --input is.
  lists: str = ''  # What --lists takes.
  classes: tuple[str, ...] = ()  # Sorted; () where the names are only in the download.
  clips_of_class: Mapping[str, int] = dataclasses.field(default_factory=dict)  # Of all parts together, where published.
  remark: str = ''  # Of the counts.
  tfds: str = ''  # The dataset's name in TensorFlow Datasets, if its prepared folder will do as --input.
  tfds_remark: str = ''  # In what TFDS differs.

  @property
  def folds(self) -> bool:
    """Whether the parts are folds."""
    return 'train' not in self.parts

  @property
  def clips(self) -> int:
    """Clips of all parts."""
    return sum(self.parts.values())


_ESC50_CLASSES = (
  'airplane breathing brushing_teeth can_opening car_horn cat chainsaw chirping_birds church_bells clapping '
  'clock_alarm clock_tick coughing cow crackling_fire crickets crow crying_baby dog door_wood_creaks door_wood_knock '
  'drinking_sipping engine fireworks footsteps frog glass_breaking hand_saw helicopter hen insects keyboard_typing '
  'laughing mouse_click pig pouring_water rain rooster sea_waves sheep siren sneezing snoring thunderstorm '
  'toilet_flush train vacuum_cleaner washing_machine water_drops wind'
)
# Of Speech Commands' paper (arXiv 1804.03209).
_SPEECH_COMMANDS = {
  **{'backward': 1_664, 'bed': 2_014, 'bird': 2_064, 'cat': 2_031, 'dog': 2_128, 'down': 3_917, 'eight': 3_787},
  **{'five': 4_052, 'follow': 1_579, 'forward': 1_557, 'four': 3_728, 'go': 3_880, 'happy': 2_054, 'house': 2_113},
  **{'learn': 1_575, 'left': 3_801, 'marvin': 2_100, 'nine': 3_934, 'no': 3_941, 'off': 3_745, 'on': 3_845},
  **{'one': 3_890, 'right': 3_778, 'seven': 3_998, 'sheila': 2_022, 'six': 3_860, 'stop': 3_872, 'three': 3_727},
  **{'tree': 1_759, 'two': 3_880, 'up': 3_723, 'visual': 1_592, 'wow': 2_123, 'yes': 4_044, 'zero': 4_052},
}
_US8K = {
  **{'air_conditioner': 1_000, 'car_horn': 429, 'children_playing': 1_000, 'dog_bark': 1_000, 'drilling': 1_000},
  **{'engine_idling': 1_000, 'gun_shot': 374, 'jackhammer': 1_000, 'siren': 929, 'street_music': 1_000},
}
_NSYNTH = {
  **{'bass': 68_955, 'brass': 13_830, 'flute': 9_423, 'guitar': 35_423, 'keyboard': 54_991, 'mallet': 35_066},
  **{'organ': 36_577, 'reed': 14_866, 'string': 20_594, 'synth_lead': 5_501, 'vocal': 10_753},
}

_ALL = (
  Definition(
    name='esc50',
    title='ESC-50: environmental sounds',
    unit_seconds=5.0,
    evar_learning_rate=1e-3,
    num_classes=50,
    parts=dict.fromkeys('12345', 400),
    split_rule='5 folds, column fold of meta/esc50.csv',
    url='https://github.com/karolpiczak/ESC-50',
    licence='CC BY-NC 3.0',
    layout='ESC-50-master: audio/*.wav, meta/esc50.csv',
    classes=tuple(_ESC50_CLASSES.split()),
    clips_of_class=dict.fromkeys(_ESC50_CLASSES.split(), 40),
  ),
  Definition(
    name='us8k',
    title='UrbanSound8K: urban sounds',
    unit_seconds=4.0,
    evar_learning_rate=3e-5,
    num_classes=10,
    parts=dict(zip(map(str, range(1, 11)), (873, 888, 925, 990, 936, 823, 838, 806, 816, 837), strict=True)),
    split_rule='10 folds, column fold of metadata/UrbanSound8K.csv',
    url='https://urbansounddataset.weebly.com/urbansound8k.html',
    licence='CC BY-NC 3.0',
    layout='UrbanSound8K: audio/foldN/*.wav, metadata/UrbanSound8K.csv',
    classes=tuple(_US8K),
    clips_of_class=_US8K,
  ),
  Definition(
    name='spcv2',
    title='Speech Commands V2: 35 words',
    unit_seconds=1.0,
    evar_learning_rate=3e-5,
    num_classes=35,
    parts={'train': 84_843, 'valid': 9_981, 'test': 11_005},
    split_rule='validation_list.txt and testing_list.txt; the rest is train',
    url='https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz',
    licence='CC BY 4.0',
    layout='speech_commands_v0.02: WORD/*.wav, validation_list.txt, testing_list.txt',
    classes=tuple(_SPEECH_COMMANDS),
    clips_of_class=_SPEECH_COMMANDS,
    tfds_remark="TFDS's speech_commands has 12 classes (10 words, silence, and the 25 other words as one)",
  ),
  Definition(
    name='vc1',
    title='VoxCeleb1: speaker identification',
    unit_seconds=8.2,
    evar_learning_rate=4e-5,
    num_classes=1_251,
    parts={'train': 138_361, 'valid': 6_904, 'test': 8_251},
    split_rule='iden_split.txt: 1 is train, 2 valid, 3 test',
    url='https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html',
    licence='CC BY 4.0 (annotations)',
    layout='the unpacked dev and test zips: wav/idXXXXX/VIDEO/NNNNN.wav',
    lists='iden_split.txt, unless it is in the input',
    remark="not verified: of the splits' sizes, only their sum, 153,516, is from a public page",
    tfds='voxceleb',
    tfds_remark='TFDS reads the dev zip alone, so the 40 speakers of the test zip are missing',
  ),
  Definition(
    name='voxforge',
    title='VoxForge: languages',
    unit_seconds=5.8,
    evar_learning_rate=1e-4,
    num_classes=6,
    parts={'train': 121_735, 'valid': 26_464, 'test': 28_229},
    split_rule='70 %, 15 %, 15 % of the submissions (SPEAKER-DATE-ID), drawn at random: by our own rule, or by --lists',
    url='http://www.voxforge.org',
    licence='GPL',
    layout='LANGUAGE/.../SPEAKER-DATE-ID/wav/*.wav; with --lists without the LANGUAGE too',
    lists="EVAR's evar/metadata/voxforge.csv (columns file_name, label, split)",
    classes=('de', 'en', 'es', 'fr', 'it', 'ru'),
    remark='not verified: calculated from 176,428 clips and the rounded ratio .69, .15, .16; and VoxForge grows',
    tfds='voxforge',
    tfds_remark='its splits are 70, 10 and 20 % of the speakers, not of the submissions',
  ),
  Definition(
    name='cremad',
    title='CREMA-D: emotions',
    unit_seconds=2.5,
    evar_learning_rate=3e-4,
    num_classes=6,
    parts={'train': 5_155, 'valid': 732, 'test': 1_551},
    split_rule='63, 9 and 19 of the 91 speakers: as TFDS crema_d 1.0.0 draws them, or by --lists',
    url='https://github.com/CheyneyComputerScience/CREMA-D',
    licence='ODbL 1.0',
    layout='CREMA-D: AudioWAV/1001_DFA_ANG_XX.wav',
    lists="EVAR's evar/metadata/cremad.csv (columns file_name, split)",
    classes=('ANG', 'DIS', 'FEA', 'HAP', 'NEU', 'SAD'),
    remark="of EVAR's own draw of the speakers, which lacks 4 of CREMA-D's 7,442 clips: --lists has it",
    tfds='crema_d',
    tfds_remark="its draw of 63, 9 and 19 speakers is not EVAR's",
  ),
  Definition(
    name='gtzan',
    title='GTZAN, fault-filtered: genres',
    unit_seconds=30.0,
    evar_learning_rate=1e-3,
    num_classes=10,
    parts={'train': 443, 'valid': 197, 'test': 290},
    split_rule='the fault-filtered lists of Kereliuk, Sturm and Larsen (2015): by --lists',
    url='http://marsyas.info/index.html',
    licence='none stated',
    layout='genres or genres_original: GENRE/GENRE.NNNNN.wav (or .au)',
    lists='train_filtered.txt valid_filtered.txt test_filtered.txt, of '
    'https://github.com/jongpillee/music_dataset_split/tree/master/GTZAN_split',
    classes=('blues', 'classical', 'country', 'disco', 'hiphop', 'jazz', 'metal', 'pop', 'reggae', 'rock'),
    tfds='gtzan',
  ),
  Definition(
    name='nsynth',
    title='NSynth: instrument families',
    unit_seconds=4.0,
    evar_learning_rate=1e-3,
    num_classes=11,
    parts={'train': 289_205, 'valid': 12_678, 'test': 4_096},
    split_rule="the dataset's own; test has no synth_lead",
    url='https://magenta.tensorflow.org/datasets/nsynth',
    licence='CC BY 4.0',
    layout='nsynth-train, nsynth-valid, nsynth-test: each with audio/*.wav and examples.json',
    classes=tuple(_NSYNTH),
    clips_of_class=_NSYNTH,
    tfds='nsynth',
  ),
  Definition(
    name='surge',
    title='Surge synthesizer: pitches',
    unit_seconds=4.0,
    evar_learning_rate=3e-5,
    num_classes=88,
    parts={'train': 148_896, 'valid': 17_160, 'test': 17_336},
    split_rule='1,692, 195 and 197 of the 2,084 presets: by our own rule, or by --lists',
    url='https://zenodo.org/record/4677097',
    licence='see its page',
    layout='PRESET/NOTE.ogg: the name ends in the MIDI note, 21 to 108',
    lists="EVAR's evar/predefined/dataset_surge_tone_splits.csv (columns tone, split)",
    classes=tuple(sorted(map(str, range(21, 109)))),
    remark='not verified: calculated from the numbers of presets, with all of 88 notes of each',
  ),
)

NINE: Mapping[str, Definition] = {definition.name: definition for definition in _ALL}
