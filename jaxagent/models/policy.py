"""`Policy`: a token model as a record of pure functions.

Whatever samples or trains sees this record and never an architecture.
"""

from collections.abc import Callable
import dataclasses
import functools

from jaxagent.models import config as config_lib
from jaxagent.models import transformer


@dataclasses.dataclass(frozen=True)
class Policy:
  """Pure functions of one model.

  `init(key) -> params`
  `apply(params, tokens [B,T], positions=None, segment_ids=None)
    -> hidden [B,T,D]`, after the final norm; positions [B,T] within each row,
    segment_ids [B,T] where rows are packed.
  `empty_cache(slots, length) -> cache`
  `extend(params, tokens [S,C], positions [S,C], valid [S,C], cache)
    -> (hidden [S,C,D], cache)`: prefill and decode, see `transformer.extend`.
  `unembed(params) -> [D,V]`
  `crop(cache, length) -> cache` and `paste(cache, cropped) -> cache`: a round
    on the first `length` positions only.
  """

  config: config_lib.ModelConfig
  init: Callable
  apply: Callable
  empty_cache: Callable
  extend: Callable
  unembed: Callable
  crop: Callable
  paste: Callable


@functools.cache
def build(
  config: config_lib.ModelConfig, *, scan: bool = False, remat: bool = False
) -> Policy:
  """The policy of a config; equal arguments give the same object.

  Args:
    scan: `apply` compiles one layer (or one of each kind in the pattern) and
      scans: 2-3 times quicker to compile, a few per cent slower to run.
    remat: `apply` keeps only the layers' inputs for its backward pass.
  """
  return Policy(
    config=config,
    init=functools.partial(transformer.init, config),
    apply=functools.partial(transformer.apply, config, scan=scan, remat=remat),
    empty_cache=functools.partial(transformer.empty_cache, config),
    extend=functools.partial(transformer.extend, config),
    unembed=transformer.unembed,
    crop=functools.partial(transformer.crop, config),
    paste=functools.partial(transformer.paste, config),
  )
