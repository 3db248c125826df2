"""Tests of `xclip plan`: the program of a run, its operations, its memory; nothing is run."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_mesh

import tiny
from xclip_jax import config
from xclip_jax.cli import main
from xclip_jax.cli.commands import plan as plan_lib
from xclip_jax.models.config import make_config
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import tree_names
from xclip_jax.planning import flops, plan, rehearsal
from xclip_jax.planning import hlo as hlo_lib
from xclip_jax.storage import state as state_lib

# A program as XLA writes it, cut to what counts: a loop that runs four times, a branch, a fusion.
HLO = '''HloModule step, entry_computation_layout={()->f32[8]{0}}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %g = f32[32]{0} all-gather(%x), dimensions={0}
  %w = f32[8]{0} fusion(%g), kind=kLoop, calls=%inner, backend_config={"estimated_cycles":"100"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %w)
}

%inner (a: f32[32]) -> f32[8] {
  ROOT %s = f32[8]{0} slice(%a), backend_config={"estimated_cycles":"7777"}
}

%few (a: f32[8]) -> f32[8] {
  ROOT %n = f32[8]{0} negate(%a), backend_config={"estimated_cycles":"5"}
}

%many (a: f32[8]) -> f32[8] {
  ROOT %m = f32[8]{0} negate(%a), backend_config={"estimated_cycles":"50"}
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %p0 = f32[8]{0} parameter(0)
  %l = (s32[], f32[8]{0}) while(%p0), condition=%c, body=%body, TRIPS
  %b = f32[8]{0} conditional(%i, %p0, %p0), branch_computations={%few, %many}
  %r = (bf16[8,64]{1,0}, /*index=1*/f32[]) all-reduce(%b, %b), to_apply=%add
  %q = (f32[8]{0}, f32[8]{0}) collective-permute-start(%p0)
  ROOT %o = f32[8]{0} copy(%b)
}
'''.replace('TRIPS', 'backend_config={"known_trip_count":{"n":"4"}}')


def test_loops_count_as_often_as_they_run_and_of_branches_the_longest():
  assert hlo_lib.cycles(HLO) == 4 * 100 + 50
  assert hlo_lib.collectives(HLO) == {
    'all-gather': hlo_lib.Traffic(4, 4 * 32 * 4),
    'all-reduce': hlo_lib.Traffic(1, 8 * 64 * 2 + 4),
    'collective-permute': hlo_lib.Traffic(1, 8 * 4),
  }
  with pytest.raises(ValueError, match='no HLO'):
    hlo_lib.cycles('nothing')


@pytest.mark.parametrize(('condition', 'times'), [
  ('compare(%i, %n), direction=LT', 16), ('compare(%x, %n), direction=GT', 1)])
def test_loops_of_a_tpu_count_as_their_condition_says(condition, times):
  """XLA:TPU leaves no trip count beside its loops."""
  hlo = HLO.replace(', backend_config={"known_trip_count":{"n":"4"}}', '') + f"""
%c (p: (s32[], f32[8])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant(16)
  ROOT %r = pred[]{{:T(512)}} {condition}
}}
"""
  assert hlo_lib.cycles(hlo) == times * 100 + 50


@pytest.mark.parametrize(('variant', 'frames', 'published'), [
  ('B/32', 8, 39), ('B/32', 16, 75), ('B/16', 8, 145), ('B/16', 16, 287), ('L/14', 8, 658),
  ('L/14@336', 16, 3086)])
def test_operations_are_the_papers(variant, frames, published):
  c = make_config(variant, num_frames=frames)        # Table 1; with the prompts of 400 classes
  counted = (flops.encode_video(c) + flops.classify(c, 400)) / 2e9
  assert 0.965 * published < counted < published


@pytest.mark.slow
def test_the_program_does_no_more_than_the_operations_counted_by_hand():
  """B/32 at its size: what is counted is what XLA compiles, within 2 %."""
  c = make_config('B/32')
  model = XCLIP(c)
  video = jax.ShapeDtypeStruct((1, 8, 224, 224, 3), jnp.float32)
  text = jax.ShapeDtypeStruct((400, 512), jnp.float32)
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros(video.shape), jnp.zeros((1, 77), jnp.int32)))
  program = jax.jit(
    lambda v, x, t: model.apply(v, x, t, method='classify').logits).lower(params, video, text)
  counted = flops.encode_video(c) + flops.classify(c, 400)
  assert 1 <= program.compile().cost_analysis()['flops'] / counted <= 1.02


def test_training_counts_forward_and_twice_that_backward():
  c = make_config('B/16', patch_dropout=0.5)
  whole = make_config('B/16')
  assert flops.train_step(whole, 2, 400) == 2 * (
    3 * (flops.encode_video(whole) + flops.classify(whole, 400)) - flops.patch_embed(whole))
  assert 0.45 < flops.train_step(c, 2, 400) / flops.train_step(whole, 2, 400) < 0.55
  text = flops.train_step(c, 2, 400, 16) - flops.train_step(c, 2, 400)
  assert text == 3 * flops.encode_text(c, 400, 16)


def small(**changes):
  c = config.get_config()
  c.model.num_frames, c.model.fields = 2, tiny.FIELDS
  c.train.batch_size = c.eval.batch_size = 4
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return c


VIDEO_BYTES = 4 * 2 * 32 * 32 * 3            # uint8 [B, T, H, W, C] of `small`


def state_bytes(step):
  """Returns the bytes of the parameters that a step reads, and of Adam's two moments."""
  model = XCLIP(make_config('B/16', num_frames=2, **tiny.FIELDS))
  shapes = tree_names.flatten(state_lib.abstract(model, optax.identity()).params)
  sizes = {name: 4 * x.size for name, x in shapes.items()}
  without_text = sum(n for name, n in sizes.items() if not name.startswith('text/'))
  return without_text if step == 'eval' else sum(sizes.values()) + 2 * without_text


@pytest.mark.slow
@pytest.mark.parametrize('step', plan.STEPS)
def test_a_step_is_compiled_and_its_memory_told(step):
  found = plan.make(small(), 'cpu', step, classes=5)
  assert found.memory.total == found.bytes_needed
  assert found.memory.arguments == pytest.approx(state_bytes(step) + VIDEO_BYTES, rel=0.01)
  assert found.memory.temporary >= 4 * VIDEO_BYTES                 # the video in float32
  assert (found.fits, found.seconds, found.traffic) == (None, None, {})


@pytest.mark.parametrize('changes', [
  pytest.param({'train__task': 'multi-label'}, marks=pytest.mark.slow),
  pytest.param({'train__task': 'captions', 'augment__mixup': 0.0, 'augment__cutmix': 0.0,
                'augment__label_smoothing': 0.0}, marks=pytest.mark.slow),
  pytest.param({'train__init_from': 'w', 'train__distill': 2.0, 'train__interpolate_up_to': 0.6},
               marks=pytest.mark.slow)])
def test_every_kind_of_training_can_be_planned(changes):
  found = plan.make(small(**changes), 'cpu', classes=5)
  assert found.bytes_needed >= state_bytes('train') + 5 * VIDEO_BYTES


@pytest.mark.slow
def test_the_command_prints_and_writes_what_a_mesh_costs(tmp_path):
  fields = [x for k, v in tiny.FIELDS.items() for x in ('--set', f'model.fields.{k}={v}')]
  words = ['plan', '--platform', 'cpu:4', '--batch', '8', '--frames', '2', '--classes', '5',
           '--mesh', 'data=2,fsdp=2', '--json', str(tmp_path / 'plan.json'), *fields]
  done = subprocess.run(
    [sys.executable, '-m', 'xclip_jax.cli', *words], cwd=tiny.REPO, capture_output=True, text=True,
    env=os.environ | {'PYTHONPATH': str(tiny.REPO)}, check=False)
  assert done.returncode == 0, done.stderr
  assert 'Compiled, not run' in done.stdout and 'all-reduce' in done.stdout
  found, = json.loads((tmp_path / 'plan.json').read_text())
  assert found['mesh'] == {'dcn': 1, 'data': 2, 'fsdp': 2, 'tensor': 1}
  # Each device gathers the half of every large parameter that it lacks.
  assert found['traffic']['all-gather']['count'] >= 10 and found['recompute_factor'] > 1
  assert found['bytes_needed'] == sum(found['memory'].values())
  assert '1 host(s) with 4 device(s) each; each reads 8 of the 8 rows' in done.stdout
  assert '64 clips at once: 64 videos (64 a host) x 1 of 1 view(s)' in done.stdout
  assert found['train_rows'] == [8] and found['eval_videos'] == 64


def test_what_to_try_is_ordered_by_what_it_costs():
  alone = dict(dcn=1, data=1, fsdp=1, tensor=1)
  names = [name for name, _ in plan.alternatives(small(train__batch_size=8), alone)]
  assert names == ['model.remat=dots', 'model.remat=nothing',
                   *(f'model.remat=nothing, train.accumulation={n}' for n in (2, 4, 8))]
  several = dict(plan.alternatives(small(), alone | dict(data=4)))
  changed = several['model.remat=nothing, mesh.data=1, mesh.fsdp=4, train.accumulation=2']
  assert (changed.model.remat, changed.train.accumulation) == ('nothing', 2)
  assert (changed.mesh.data, changed.mesh.fsdp) == (1, 4)


@pytest.mark.parametrize(('message', 'gib'), [
  ('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm.', 24.5),
  ('RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory '
   'required for HLO temporaries (20.07G) exceeds available HBM (15.75G).', 20.07)])
def test_a_program_that_does_not_fit_says_what_it_needs(message, gib):
  assert plan._bytes_wanted(message) == int(gib * 2**30)
  with pytest.raises(ValueError, match='the compiler refused: other'):
    plan._bytes_wanted('other')


@pytest.mark.parametrize(('message', 'kind'), [
  ('INTERNAL: RET_CHECK failure', jax.errors.JaxRuntimeError),
  ('RESOURCE_EXHAUSTED: no number', ValueError),
])
def test_only_a_lack_of_memory_is_the_user_s(message, kind):
  def compile_(options):
    raise jax.errors.JaxRuntimeError(message)

  with pytest.raises(kind):
    plan._compile(types.SimpleNamespace(compile=compile_), None)


def pod(hosts, each=4):
  """Chips whose hosts stand in no order."""
  found = [test_mesh.Chip(i, i // each) for i in range(hosts * each)]
  return [found[i] for i in np.random.default_rng(1).permutation(len(found))]


def test_a_pod_is_rehearsed():
  found = rehearsal.rehearse(small(
    train__batch_size=64, eval__batch_size=48, eval__clips=4, eval__crops=3), pod(4))
  assert (found.hosts, found.host_devices, found.mesh['data']) == (4, 4, 16)
  assert (found.train_rows, found.eval_rows) == ((16,) * 4, (4,) * 4)
  assert (found.eval_videos, found.views, found.eval_views, found.eval_clips) == (16, 12, 3, 48)
  few = rehearsal.rehearse(small(train__batch_size=64, eval__batch_size=64, mesh__fsdp=2,
                                 mesh__tensor=2), pod(4))
  assert (few.mesh['data'], few.eval_videos, few.eval_clips) == (4, 64, 64)


@pytest.mark.parametrize(('changes', 'message'), [
  ({'train__batch_size': 24}, 'config.train.batch_size=24 does not divide by 16 shards'),
  ({'eval__batch_size': 24}, 'config.eval.batch_size=24 does not divide by 16 shards'),
  ({'mesh__tensor': 8}, 'tensor one of 1, 2, 4'),
  ({'mesh__tensor': 4}, 'does not divide vision_heads=2'),
  ({'train__distill': 2.0}, 'set config.train.init_from'),
  ({'train__task': 'captions'}, 'mixup'),
])
def test_what_a_run_would_refuse_a_rehearsal_refuses(changes, message):
  config = small(**{'train__batch_size': 64, 'eval__batch_size': 64} | changes)
  with pytest.raises(ValueError, match=message):
    rehearsal.rehearse(config, pod(4))


def test_plan_refuses_what_a_run_would_refuse():
  code = 'import sys; from xclip_jax.cli import main; print(*map(main.main, eval(sys.argv[1])))'
  asked = [
    ['plan', '--platform', 'cpu:8', '--config', 'configs/k400_b16_8f.py', '--set',
     'eval.batch_size=12'],
    ['plan', '--platform', 'cpu:8', '--batch', '12'],
  ]
  done = subprocess.run(                   # one process, for one that has eight devices
    [sys.executable, '-c', code, repr(asked)], cwd=tiny.REPO, capture_output=True,
    text=True, env=os.environ | {'PYTHONPATH': str(tiny.REPO)}, check=False)
  assert done.stdout.split() == ['2', '2'], done.stderr
  for line, field in zip(done.stderr.splitlines()[-2:], ('eval', 'train'), strict=True):
    assert f'config.{field}.batch_size=12 does not divide' in line, done.stderr


@pytest.mark.parametrize(('words', 'message'), [
  (['--platform', 'v9:2x2'], "platform 'v9:2x2' is unknown"),
  (['--platform', 'cpu', '--set', 'model.size=3'], 'config.model.size=3'),
  (['--platform', 'cpu', '--set', 'model.remat'], 'FIELD=VALUE wanted'),
  (['--platform', 'cpu', '--mesh', 'all'], 'wanted as in data=8,fsdp=4'),
  (['--platform', 'cpu', '--mesh', 'data=3'], 'does not cover the 1 devices'),
  (['--platform', 'cpu', '--variant', 'B/64'], "unknown variant 'B/64'"),
  (['--platform', 'cpu:x'], 'cpu:N wants a number'),
  (['--platform', 'cpu', '--config', 'none.py'], 'no such file'),
  (['--platform', 'cpu', '--set', 'model.attention=cudnn'], "attention='cudnn' needs an NVIDIA"),
  (['--platform', 'cuda:none.txtpb'], 'cannot read none.txtpb'),
  (['--platform', 'cuda:README.md*2'], 'README.md has no device_memory_size'),
  (['--platform', 'cuda:README.md*x'], 'the number of GPUs in a host'),
  (['--platform', 'cpu', '--classes', '0'], '--classes must be at least 1'),
])
def test_what_cannot_be_planned_is_one_line(words, message, capsys, monkeypatch):
  monkeypatch.setattr(os, 'environ', os.environ.copy())
  assert main.main(['plan', *words]) == 2
  said = capsys.readouterr().err
  assert message in said and said.count('\n') == 1


def test_estimates_are_of_the_whole_mesh():
  found = plan.Plan('train', 8, 'v5e:2x4', {'data': 8}, None, 1, plan.CHIPS['v5e'].memory,
                    np.int64(8e12), 1.1e12, {}, 0.02, 8 * 197e12, 1.0)
  assert found.mfu == pytest.approx(8e12 / 0.02 / (8 * 197e12)) and found.fits
  assert found.recompute_factor == pytest.approx(1.1)


def test_room_for_more_videos_is_told_by_proportion():
  gib = 2**30
  memory = hlo_lib.Memory(arguments=2 * gib, outputs=0, temporary=4 * gib, program=0)
  found = plan.Plan('train', 16, 'v5e:2x4', {'dcn': 1, 'data': 4, 'fsdp': 2, 'tensor': 1}, memory,
                    6 * gib, 16 * gib, 10**12, None, {}, None, None, 1.0)
  assert found.estimated_max_batch == 48                         # 12.4 GiB of 4 for 16, in eighths
  assert 'about 48 videos a step' in plan_lib.numbers(found)
  too_many = dataclasses.replace(found, batch=160, capacity=5 * gib)
  assert too_many.estimated_max_batch == 96 and 'DOES NOT FIT' in plan_lib.numbers(too_many)
