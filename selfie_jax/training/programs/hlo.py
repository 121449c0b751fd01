"""What a compiled program does, read from its text: its collectives, and the arithmetic of its loops.

XLA's own summary (`compiled.cost_analysis()`) counts the body of a loop once, however often it runs, and says nothing
of communication; and its passes join collectives of different origin in one instruction. So the text is parsed into
instructions and computations, the number of runs of each computation is carried along the calls, and each array of a
joined collective keeps the name of the operation that asked for it.

The text is XLA's HLO of one device's program (https://openxla.org/xla/operation_semantics has the operations).
"""

import collections
import dataclasses
import math
import re

import numpy as np

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# Between TPU slices there are no collectives: the hosts send an array over their network, and the text says what for.
CROSS_SLICE = 'cross-slice '

_BITS = {'pred': 8, 'token': 0, 'opaque': 0, 'c64': 64, 'c128': 128}
_ARRAY = re.compile(r'([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\]')
_RENDEZVOUS = r'_xla_host_transfer_rendezvous="([^"]*)"'
_HEADER = re.compile(r'(ENTRY )?%?([\w.-]+) (\(.*)?\{$')
_ASSIGNMENT = re.compile(r'\s*(ROOT )?%?([\w.-]+) = (.*)')
_CALLEES = re.compile(r'(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)')
_CALLEE_LISTS = re.compile(r'(?:branch_computations|called_computations)=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  text: str  # Between the operands' parentheses.
  attributes: str  # After them.
  is_root: bool

  @property
  def op_name(self) -> str:
    """The path of the JAX operation it comes from, such as `jit(train_step)/jvp(objective)/reduce_sum`, or ''."""
    return _search(r'op_name="([^"]*)"', self.attributes) or ''


@dataclasses.dataclass(frozen=True)
class Part:
  """One of the arrays that a collective works on."""

  shape: str  # Such as f32[256,256]: as one device has it afterwards.
  bytes: int  # Of the whole array: what the group of a reduce-scatter starts from, and that of an all-gather ends with.
  op_name: str  # The JAX operation that asked for it, or '' if the compiler kept no name.


@dataclasses.dataclass(frozen=True)
class Collective:
  """An instruction by which devices exchange data."""

  kind: str
  name: str
  parts: tuple[Part, ...]
  group_size: int  # Devices that exchange with each other; of a cross-slice one, slices.
  runs: int  # In one run of the program: more than 1 inside a loop.
  runs_known: bool  # False inside a loop whose number of rounds could not be read: `runs` counts one.

  @property
  def bytes(self) -> int:
    """Bytes of all its arrays, in one run of it."""
    return sum(part.bytes for part in self.parts)

  @property
  def sent_share(self) -> float:
    """Bytes that each device has to send, over `bytes`.

    This is the least that an exchange among equals can do with (Chan et al., "Collective communication: theory,
    practice, and experience", 2007, section 4): an all-reduce is a reduce-scatter and an all-gather, and in each of
    these a device sends all parts but its own.
    """
    others = (self.group_size - 1) / self.group_size
    return {'all-reduce': 2 * others, 'collective-permute': 1.0}.get(self.kind.removeprefix(CROSS_SLICE), others)


@dataclasses.dataclass(frozen=True)
class Product:
  """A matrix product or a convolution."""

  op_name: str  # The JAX operation that asked for it, or '' if the compiler kept no name.
  types: tuple[str, ...]  # Of its operands: f32, bf16.
  flops: int  # In one run of it, those on padding left out.
  runs: int  # In one run of the program.


class Program:
  """A parsed program: `computations` in the order of the text (callees first), and how often each runs."""

  def __init__(self, text: str) -> None:
    """Parses the text of a compiled program, `compiled.as_text()`."""
    self.computations: dict[str, list[Instruction]] = {}
    self._users: dict[str, list[Instruction]] = collections.defaultdict(list)
    self._by_name: dict[str, Instruction] = {}
    entry = current = None
    for line in text.splitlines():
      if current is None:
        if header := _HEADER.match(line):
          current = header[2]
          entry = current if header[1] else entry
          self.computations[current] = []
      elif re.match(r'\}(,|$)', line):
        current = None
      elif instruction := _parse_instruction(line):
        self.computations[current].append(instruction)
        self._by_name[instruction.name] = instruction
        for operand in instruction.operands:
          self._users[operand].append(instruction)
    if entry is None:
      raise ValueError('no ENTRY computation: is this the text of an HLO module?')
    self._runs, self._unknown = self._count_runs(entry)

  def _count_runs(self, entry: str) -> tuple[dict[str, int], set[str]]:
    """Returns how often each computation runs, and the computations whose number of runs could not be read."""
    runs, unknown = collections.Counter({entry: 1}), set()
    for name, instructions in reversed(self.computations.items()):  # Callers first.
      for instruction in instructions:
        if instruction.opcode in ('async-update', 'async-done'):  # They name the computation that async-start runs.
          continue
        callees = _CALLEES.findall(instruction.attributes)
        for names in _CALLEE_LISTS.findall(instruction.attributes):
          callees += re.findall(r'[\w.-]+', names)  # All branches: the most that can run.
        rounds = self._rounds(instruction) if instruction.opcode == 'while' else 1
        for callee in callees:
          runs[callee] += runs[name] * (1 if rounds is None else rounds)
          if rounds is None or name in unknown:
            unknown.add(callee)
    return runs, unknown

  def _rounds(self, loop: Instruction) -> int | None:
    """Returns how often the body of a while loop runs, or None if that cannot be read.

    GPU and CPU programs say it. In TPU programs it follows from the loops of `lax.scan` and `lax.map`: a counter in the
    loop's tuple goes from a constant in steps of a constant while it is less than a constant.
    """
    if known := _search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
      return int(known)
    condition, body = (_search(rf'{key}=%?([\w.-]+)', loop.attributes) for key in ('condition', 'body'))
    test = _root(self.computations[condition])
    update = _root(self.computations[body])
    if test.opcode != 'compare' or 'direction=LT' not in test.attributes or update.opcode != 'tuple':
      return None
    counter, limit = (self._resolve(name) for name in test.operands)
    if counter.opcode != 'get-tuple-element' or limit.opcode != 'constant':
      return None
    index = int(_search(r'index=(\d+)', counter.attributes))
    values = self._resolve(loop.operands[0])
    start = self._resolve(values.operands[index]) if values.opcode == 'tuple' else values
    step = self._resolve(update.operands[index])
    if start.opcode != 'constant' or step.opcode != 'add':
      return None
    steps = [term for term in map(self._resolve, step.operands) if term.opcode == 'constant']
    if len(steps) != 1:
      return None
    first, last, size = (int(value.text) for value in (start, limit, steps[0]))
    return max(0, -(-(last - first) // size)) if size > 0 else None

  def _resolve(self, name: str) -> Instruction:
    """Returns the instruction that computes a value, past those that only move it."""
    instruction = self._by_name[name]
    while instruction.opcode in ('copy', 'copy-start', 'copy-done', 'bitcast'):
      instruction = self._by_name[instruction.operands[0]]
    return instruction

  def collectives(self, num_devices: int) -> list[Collective]:
    """Returns the collectives, an asynchronous pair of start and done as one, in the order of the text."""
    found = []
    for name, instructions in self.computations.items():
      for instruction in instructions:
        kind = _kind(instruction)
        if kind and self._runs[name]:
          group = _group_size(kind, instruction.attributes, num_devices)
          parts = self._parts(kind, instruction, group)
          found.append(Collective(kind, instruction.name, parts, group, self._runs[name], name not in self._unknown))
    return found

  def _parts(self, kind: str, instruction: Instruction, group_size: int) -> tuple[Part, ...]:
    result = instruction
    if instruction.opcode.endswith('-start'):  # Its own shape has the operands and buffers, too.
      result = next(user for user in self._users[instruction.name] if user.opcode == f'{kind}-done')
    arrays = _ARRAY.findall(result.shape)
    if instruction.opcode == 'send':  # The array, a number and a token.
      arrays = arrays[:1]
    scale = group_size if kind == 'reduce-scatter' else 1
    return tuple(
      Part(f'{dtype}[{dims}]', scale * _array_bytes(dtype, dims), self._asked_for_by(instruction, result, i))
      for i, (dtype, dims) in enumerate(arrays)
    )

  def _asked_for_by(self, instruction: Instruction, result: Instruction, index: int) -> str:
    """Returns the name of the operation that asked for a collective's array.

    When XLA joins collectives, the joined one has the name of any one of them; each array's own name stays on the
    instruction that takes that array out of the result. Where that has none (a reduce-scatter that was rewritten as
    an all-reduce has lost it), the nearest named one of the operations that led to the array stands in.
    """
    if result.shape.startswith('(') and result.opcode != 'send':
      takers = [user for user in self._users[result.name] if user.opcode == 'get-tuple-element']
      own = [taker.op_name for taker in takers if _search(r'index=(\d+)', taker.attributes) == str(index)]
    else:
      own = [result.op_name, instruction.op_name]
    return next(filter(None, own), '') or self._origin(instruction.operands[index])

  def _origin(self, name: str) -> str:
    """Returns the name of the JAX operation that led to a value: the nearest, upwards in its computation."""
    queue, seen = collections.deque([name]), {name}
    while queue:
      instruction = self._by_name.get(queue.popleft())
      if instruction is None:
        continue
      if instruction.op_name:
        return instruction.op_name
      sources = self._sources(instruction)
      queue.extend(source for source in sources if source not in seen)
      seen.update(sources)
    return ''

  def _sources(self, instruction: Instruction) -> tuple[str, ...]:
    """Returns the values that a value is made from: past a joined collective, and past hosts, its own alone."""
    if instruction.opcode == 'get-tuple-element':
      maker = self._by_name[instruction.operands[0]]
      if maker.opcode in (*KINDS, 'tuple'):
        return (maker.operands[int(_search(r'index=(\d+)', instruction.attributes))],)
    if instruction.opcode == 'recv':  # What the hosts of other slices sent, it sent itself.
      rendezvous = _search(_RENDEZVOUS, instruction.attributes)
      return tuple(
        sender.operands[0]
        for sender in self._by_name.values()
        if sender.opcode == 'send' and _search(_RENDEZVOUS, sender.attributes) == rendezvous
      )
    return instruction.operands

  def products(self) -> list[Product]:
    """Returns the matrix products and convolutions that run, in the order of the text."""
    return [
      Product(instruction.op_name, self._operand_types(instruction), self._flops(instruction), self._runs[name])
      for name, instructions in self.computations.items()
      for instruction in instructions
      if self._runs[name] and instruction.opcode in ('dot', 'convolution')
    ]

  def loop_flops(self) -> int:
    """Returns the floating-point operations of matrix products and convolutions in the second and further rounds.

    `compiled.cost_analysis()['flops']` has those of the first.
    """
    return sum(
      (self._runs[name] - 1) * self._flops(instruction)
      for name, instructions in self.computations.items()
      if self._runs[name] > 1
      for instruction in instructions
      if instruction.opcode in ('dot', 'convolution')
    )

  def _operand_types(self, instruction: Instruction) -> tuple[str, ...]:
    return tuple(_ARRAY.match(self._by_name[name].shape)[1] for name in instruction.operands)

  def _flops(self, instruction: Instruction) -> int:
    left, right = (_dimensions(self._by_name[name].shape) for name in instruction.operands)
    output = _dimensions(instruction.shape)
    if instruction.opcode == 'dot':
      contracted = _integers(_search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes))
      return 2 * math.prod(output) * math.prod(left[axis] for axis in contracted)
    return convolution_flops(left, right, output, instruction.attributes)


def convolution_flops(
  inputs: tuple[int, ...], kernel: tuple[int, ...], output: tuple[int, ...], attributes: str
) -> int:
  """Returns the floating-point operations of a convolution, those on padding left out.

  As XLA's `HloCostAnalysis::HandleConvolution` counts them. Backward passes are convolutions with so much padding or
  dilation that counting all of it would give several times the number.
  """
  labels = _search(r'dim_labels=(\w+_\w+->\w+)', attributes)
  input_labels, kernel_labels, output_labels = re.split('_|->', labels)
  window = dict(re.findall(r'(\w+)=([^\s}]+)', _search(r'window=\{([^}]*)\}', attributes) or ''))
  positions = 1
  for i in range(len(kernel_labels) - 2):

    def setting(key: str, default: str, i: int = i) -> str:
      return window[key].split('x')[i] if key in window else default

    low = int(setting('pad', '0_0').split('_')[0])
    stride, dilation = int(setting('stride', '1')), int(setting('rhs_dilate', '1'))
    base = int(setting('lhs_dilate', '1'))
    size = inputs[input_labels.index(str(i))]
    kernel_position = np.arange(kernel[kernel_labels.index(str(i))]) * dilation
    position = np.arange(output[output_labels.index(str(i))])[:, None] * stride - low + kernel_position
    positions *= int(((position % base == 0) & (position >= 0) & (position < size * base)).sum())
  batch_groups = int(_search(r'batch_group_count=(\d+)', attributes) or 1)
  batch = inputs[input_labels.index('b')] // batch_groups
  return 2 * batch * kernel[kernel_labels.index('i')] * kernel[kernel_labels.index('o')] * positions


def _parse_instruction(line: str) -> Instruction | None:
  match = _ASSIGNMENT.match(line)
  if not match:  # A line of a literal.
    return None
  rest = match[3]
  # A tuple's shape has blanks and comments in it, and a layout has parentheses.
  end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
  shape, call = rest[:end], rest[end:].lstrip()
  opcode, _, _ = call.partition('(')
  closing = _closing(call, len(opcode))
  text = call[len(opcode) + 1 : closing]
  # Each is a name, after its shape in some texts; a comment numbers every fifth.
  operands = [operand.split(' ')[-1].lstrip('%') for operand in re.sub(r'/\*.*?\*/', '', text).split(', ')]
  return Instruction(match[2], shape, opcode, tuple(operands), text, call[closing + 1 :], bool(match[1]))


def _closing(text: str, start: int) -> int:
  """Returns where the parenthesis at `start` is closed (the end of the text where a literal goes on below)."""
  depth = 0
  for match in re.compile(r'[()]').finditer(text, start):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  return len(text)


def _kind(instruction: Instruction) -> str | None:
  """Returns which collective an instruction is or starts, or None."""
  if instruction.opcode == 'send':
    purpose = _search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    return purpose and CROSS_SLICE + purpose.lower().replace('_', '-')
  kind = instruction.opcode.removesuffix('-start')
  return kind if kind in KINDS else None


def _group_size(kind: str, attributes: str, num_devices: int) -> int:
  """Returns the size of the (equal) groups of devices, which XLA writes in one of several ways."""
  if kind == 'collective-permute':  # Pairs of a sender and a receiver.
    return 2
  if slices := _search(r'_xla_megascale_target="\{([\d,:]*)\}', attributes):
    # {1,2}x{0:7}: slices, of which a range may stand for several, and their devices.
    ranges = [part.partition(':') for part in slices.split(',')]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
  if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{((?:'[^}]*)?)\}", attributes):
    # mesh['a'=8,'b'=2] {'a','b':(1)2}: along whole axes of a mesh or, with the size last, parts of them.
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  if iota := _search(r'replica_groups=\[\d+,(\d+)\]<=', attributes):
    return int(iota)  # [groups,size]<=[devices]
  first = _search(r'replica_groups=\{\{([\d,]*)\}', attributes)  # {{0,1},{2,3}}, or {} for all devices.
  return len(_integers(first)) if first else num_devices


def _root(instructions: list[Instruction]) -> Instruction:
  return next(instruction for instruction in instructions if instruction.is_root)


def _dimensions(shape: str) -> tuple[int, ...]:
  return _integers(_ARRAY.match(shape)[2])


def _array_bytes(dtype: str, dims: str) -> int:
  bits = _BITS[dtype] if dtype in _BITS else int(_search(r'[a-z](\d+)', dtype))  # f32, bf16, s8, f8e4m3fn
  return -(-math.prod(_integers(dims.replace('<=', ''))) * bits // 8)


def _integers(text: str) -> tuple[int, ...]:
  return tuple(map(int, filter(None, text.split(','))))


def _search(pattern: str, text: str) -> str | None:
  match = re.search(pattern, text)
  return match[1] if match else None
