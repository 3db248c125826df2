"""Tests of `xclip eval average`: means as in papers, of results that belong together."""

import json

import numpy as np
import pytest

from xclip_jax.cli import main

BASE, NOVEL = (0.8, 0.7, 0.9), (0.4, 0.6, 0.5)


def result(folder, protocol, numbers, **options):
  harmonic = 2 * numbers[0] * numbers[-1] / (numbers[0] + numbers[-1])
  folder.mkdir()
  lists = [{'name': f'list {n}', 'missing': [], 'metrics': {'top1': x, 'ece': None, 'expected': 9}}
           for n, x in enumerate(numbers)]
  (folder / 'results.json').write_text(json.dumps({
    'protocol': protocol, 'protocol_version': 1, 'lists': lists,
    'options': {'clips': 1, 'templates': ['{}']} | options, 'harmonic_mean': {'top1': harmonic}}))
  return folder


def run(*words):
  return main.main(['eval', 'average', *map(str, words)])


def test_base_and_novel_are_averaged_both_ways(tmp_path, capsys):
  places = [result(tmp_path / str(n), 'base-novel', x)
            for n, x in enumerate(zip(BASE, NOVEL, strict=True))]
  assert run(*places, '-o', tmp_path / 'out') == 0
  found = json.loads((tmp_path / 'out/results.json').read_text())
  base, novel = np.mean(BASE), np.mean(NOVEL)
  each = [2 * b * n / (b + n) for b, n in zip(BASE, NOVEL, strict=True)]
  assert found['lists'][0]['mean'] == {'top1': pytest.approx(base)}
  assert found['lists'][1]['std']['top1'] == pytest.approx(np.std(NOVEL))
  h = found['harmonic_mean']
  assert h['of_means'] == pytest.approx(2 * base * novel / (base + novel))
  assert (h['mean'], h['std']) == (pytest.approx(np.mean(each)), pytest.approx(np.std(each)))
  said = capsys.readouterr().out
  assert f'{100 * base:.1f}%' in said and (tmp_path / 'out/report.md').exists()


@pytest.mark.parametrize(('make', 'message'), [
  (lambda p: [result(p / 'a', 'supervised', [0.5])], 'two results or more'),
  (lambda p: [result(p / 'a', 'supervised', [0.5]), p / 'none'], 'is no result'),
  (lambda p: [result(p / 'a', 'supervised', [0.5]), result(p / 'b', 'zero-shot', [0.5])],
   'protocol is'),
  (lambda p: [result(p / 'a', 'supervised', [0.5]), result(p / 'b', 'supervised', [0.5], clips=4)],
   'options.clips is 4'),
  (lambda p: [result(p / 'a', 'supervised', [0.5])] * 2, 'named twice'),
])
def test_what_does_not_belong_together_is_refused(tmp_path, capsys, make, message):
  assert run(*make(tmp_path)) == 2
  assert message in capsys.readouterr().err
