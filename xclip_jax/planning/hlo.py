"""What a compiled program says about itself: memory, communication, the compiler's estimate.

All of it is read from the optimised HLO of one device; nothing is run.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from xclip_jax.errors import UserError

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

# `  ROOT %name = TYPE opcode(operands), attributes`, where TYPE may be a tuple with comments in it.
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_ARRAY = re.compile(r'\b(pred|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\]')
_CALLED = re.compile(
  r'(condition|body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r' = s32\[\]\S* constant\((\d+)\)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device.

  Fields:
    arguments: parameters, optimizer state, the batch; overwritten in place where donated.
    outputs: what is not written over an argument.
    temporary: what is alive at once in between, at the most.
    program: the code.
  """

  arguments: int
  outputs: int
  temporary: int
  program: int

  @property
  def total(self) -> int:
    return self.arguments + self.outputs + self.temporary + self.program


@dataclasses.dataclass(frozen=True)
class Traffic:
  """What one kind of collective moves: how often it runs, and bytes of its results, a device."""

  count: int
  bytes: int


def memory(program: Any) -> Memory:
  """Reads the memory of a jax.stages.Compiled."""
  m = program.memory_analysis()
  return Memory(
    m.argument_size_in_bytes, m.output_size_in_bytes - m.alias_size_in_bytes,
    m.temp_size_in_bytes, m.generated_code_size_in_bytes)


def collectives(hlo: str) -> dict[str, Traffic]:
  """Counts what devices exchange, by kind of COLLECTIVES; a loop's body as often as it runs."""
  found = {}
  for times, kind, result, _ in _executed(hlo):
    name = kind.removesuffix('-start')
    if name not in COLLECTIVES:
      continue
    before = found.get(name, Traffic(0, 0))
    size = _result_bytes(result, halved=kind.endswith('-start') and name != 'all-reduce')
    found[name] = Traffic(before.count + times, before.bytes + times * size)
  return {name: found[name] for name in COLLECTIVES if name in found}


def cycles(hlo: str) -> int:
  """Sums the estimated cycles that XLA:TPU leaves with its instructions; 0 on other platforms.

  Loops count as often as they run, where that is fixed; of branches the longest. It is the
  compiler's cost model: it orders variants of a program, and says nothing certain about time.
  Communication is not in it.
  """
  return sum(times * int(found[1]) for times, _, _, line in _executed(hlo)
             if (found := _CYCLES.search(line)))


def _executed(hlo: str) -> Iterator[tuple[int, str, str, str]]:
  """Yields (times, opcode, result type, line) of what runs, from the entry; fusions as a whole."""
  computations, entry = _split(hlo)

  @functools.cache
  def weight(name: str) -> int:        # to choose among branches
    found = ((times, _CYCLES.search(line)) for times, _, _, line in walk(name, 1))
    return sum(times * int(match[1]) for times, match in found if match)

  def walk(name: str, times: int) -> Iterator[tuple[int, str, str, str]]:
    for opcode, result, line in computations.get(name, ()):
      yield times, opcode, result, line
      if opcode == 'while':
        called = dict(_CALLED.findall(line))
        trips = _trips(line, computations.get(called['condition'], ()))
        yield from walk(called['body'], times * trips)
      elif opcode == 'conditional':
        branches = _BRANCHES.search(line)
        names = ([x.strip().lstrip('%') for x in branches[1].split(',')] if branches else
                 [x for key, x in _CALLED.findall(line) if key.endswith('_computation')])
        yield from walk(max(names, key=weight), times)
      elif opcode in ('call', 'async-start'):
        for _, called in _CALLED.findall(line):
          yield from walk(called, times)

  yield from walk(entry, 1)


def _trips(loop: str, condition: Iterable[tuple[str, str, str]]) -> int:
  """How often a loop runs: XLA:CPU and XLA:GPU say so; on a TPU it is read from the condition.

  Loops of JAX that have a fixed length count from 0 by 1 while below it. What stops when data say
  so, as drawing from a Beta distribution does, counts once.
  """
  if found := _TRIPS.search(loop):
    return int(found[1])
  limits = [int(found[1]) for *_, line in condition if (found := _CONSTANT.search(line))]
  counts = any('direction=LT' in line for *_, line in condition)
  return limits[0] if counts and len(limits) == 1 else 1


def _split(hlo: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
  computations, entry, inside = {}, '', None
  for line in hlo.splitlines():
    if line.startswith(' '):
      if inside is not None and (found := _INSTRUCTION.match(line)):
        inside.append((found[2], found[1], line))
    elif found := _COMPUTATION.match(line):
      inside = computations[found[2]] = []
      entry = found[2] if found[1] else entry
  if not entry:
    raise UserError('this is no HLO of a compiled program: it has no ENTRY computation')
  return computations, entry


def _result_bytes(result: str, halved: bool) -> int:
  """Bytes of a type such as `(bf16[8,64]{1,0}, f32[])`; of a -start, which repeats its operands."""
  total = sum(math.prod(map(int, shape.split(',') if shape else ())) * _bits(kind)
              for kind, shape in _ARRAY.findall(result)) // 8
  return total // 2 if halved else total


def _bits(kind: str) -> int:
  return 8 if kind == 'pred' else int(re.search(r'\d+', kind)[0])
