"""Reads that hang are given up in time, whoever waits for them."""

import threading
import time

import pytest

from xclip_jax.data.reading import time_limits
from xclip_jax.errors import UserError

LATE = UserError('too late')


def counting(stop, hang):
  yield from range(stop)
  hang.wait(20)


def readers():
  return [x for x in threading.enumerate() if x.name == 'read_video']


def test_items_come_in_order_and_their_thread_ends():
  assert list(time_limits.iterate(iter('abc'), 5, LATE)) == ['a', 'b', 'c']
  begun = time_limits.iterate(iter(range(9)), 5, LATE)
  assert next(begun) == 0
  begun.close()
  until = time.monotonic() + 5
  while readers() and time.monotonic() < until:
    time.sleep(0.01)
  assert not readers()


def test_what_the_iterator_raises_is_raised_here():
  def failing():
    yield 1
    raise KeyError('a mistake in the code')

  items = time_limits.iterate(failing(), 5, LATE)
  assert next(items) == 1
  with pytest.raises(KeyError, match='a mistake in the code'):
    next(items)


def test_an_item_that_does_not_come_is_given_up_after_those_before():
  hang = threading.Event()
  items = time_limits.iterate(counting(2, hang), 0.1, LATE)
  assert [next(items), next(items)] == [0, 1]
  time.sleep(0.2)                                  # the time of the caller does not count
  begun = time.monotonic()
  with pytest.raises(UserError, match='too late'):
    next(items)
  assert time.monotonic() - begun < 5
  hang.set()


def test_too_many_threads_that_hang_are_an_error_that_a_user_can_read(monkeypatch):
  monkeypatch.setattr(time_limits, '_MAX_STUCK', 1)
  monkeypatch.setattr(time_limits, '_stuck', [])
  hang = threading.Event()
  with pytest.raises(UserError, match='too late'):
    time_limits.run(lambda: hang.wait(20), 0.05, LATE)
  for begin in (lambda: time_limits.run(int, 1, LATE),
                lambda: next(time_limits.iterate(iter('a'), 1, LATE))):
    with pytest.raises(UserError, match='1 reads hang in this process'):
      begin()
  hang.set()
