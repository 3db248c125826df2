"""Memory, communication and estimated cycles of a compiled program, read from its HLO.

The HLO is the optimised one of a single device; nothing is run.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

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
  """Memory of a program on one device, in bytes.

  Fields:
    arguments: parameters, optimizer state and batch; donated ones are overwritten in place.
    outputs: outputs that do not overwrite an argument.
    temporary: largest size of all intermediate values that are alive at one time.
    program: code.
  """

  arguments: int
  outputs: int
  temporary: int
  program: int

  @property
  def total(self) -> int:
    """Bytes of all kinds together."""
    return self.arguments + self.outputs + self.temporary + self.program


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Executions of one kind of collective, and bytes of their results, on one device."""

  count: int
  bytes: int


def memory(program: Any) -> Memory:
  """Returns the memory of a jax.stages.Compiled."""
  m = program.memory_analysis()
  return Memory(
    m.argument_size_in_bytes, m.output_size_in_bytes - m.alias_size_in_bytes,
    m.temp_size_in_bytes, m.generated_code_size_in_bytes)


def collectives(hlo: str) -> dict[str, Traffic]:
  """Counts a program's communication by kind of COLLECTIVES; loop bodies count for every run."""
  traffic = {}
  for times, kind, result, _ in _executed(hlo):
    name = kind.removesuffix('-start')
    if name not in COLLECTIVES:
      continue
    before = traffic.get(name, Traffic(0, 0))
    size = _result_bytes(result, halved=kind.endswith('-start') and name != 'all-reduce')
    traffic[name] = Traffic(before.count + times, before.bytes + times * size)
  return {name: traffic[name] for name in COLLECTIVES if name in traffic}


def cycles(hlo: str) -> int:
  """Sums the cycles that XLA:TPU estimates for its instructions; 0 on other platforms.

  Loops of a fixed length count for every run, and of branches the longest counts. The estimates are
  the compiler's cost model, without communication: good for comparing variants of a program, no
  prediction of its time.
  """
  return sum(times * int(match[1]) for times, _, _, line in _executed(hlo)
             if (match := _CYCLES.search(line)))


def _executed(hlo: str) -> Iterator[tuple[int, str, str, str]]:
  """Yields (times, opcode, result type, line) of each executed instruction, fusions as one."""
  computations, entry = _split(hlo)

  @functools.cache
  def branch_cycles(name: str) -> int:
    matches = ((times, _CYCLES.search(line)) for times, _, _, line in walk(name, 1))
    return sum(times * int(match[1]) for times, match in matches if match)

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
        yield from walk(max(names, key=branch_cycles), times)
      elif opcode in ('call', 'async-start'):
        for _, called in _CALLED.findall(line):
          yield from walk(called, times)

  yield from walk(entry, 1)


def _trips(loop: str, condition: Iterable[tuple[str, str, str]]) -> int:
  """Returns the number of a loop's runs; 1 if the data decide, as in drawing from a Beta.

  XLA:CPU and XLA:GPU note the number beside the loop. On a TPU it is read from the condition:
  JAX's loops of a fixed length count from 0 by 1 while below it.
  """
  if match := _TRIPS.search(loop):
    return int(match[1])
  condition = tuple(condition)
  limits = [int(match[1]) for *_, line in condition if (match := _CONSTANT.search(line))]
  counts_up = any('direction=LT' in line for *_, line in condition)
  return limits[0] if counts_up and len(limits) == 1 else 1


def _split(hlo: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
  """Parses HLO; returns (opcode, result type, line) by computation, and the entry's name."""
  computations, entry, inside = {}, '', None
  for line in hlo.splitlines():
    if line.startswith(' '):
      if inside is not None and (match := _INSTRUCTION.match(line)):
        inside.append((match[2], match[1], line))
    elif match := _COMPUTATION.match(line):
      inside = computations[match[2]] = []
      entry = match[2] if match[1] else entry
  if not entry:
    raise ValueError('this is no HLO of a compiled program: it has no ENTRY computation')
  return computations, entry


def _result_bytes(result: str, halved: bool) -> int:
  """Counts the bytes of a type such as `(bf16[8,64]{1,0}, f32[])`.

  Args:
    result: type of an instruction's result.
    halved: True for `-start` instructions, whose result repeats their operands.
  """
  total = sum(math.prod(map(int, shape.split(',') if shape else ())) * _bits(kind)
              for kind, shape in _ARRAY.findall(result)) // 8
  return total // 2 if halved else total


def _bits(dtype: str) -> int:
  """Returns the bits of an HLO type such as bf16, f8e4m3fn or pred."""
  digits = re.search(r'\d+', dtype)
  return int(digits[0]) if digits else 8                 # pred takes a byte
