"""Rows as a person reads them: one JSON object a row, for the viewer."""

from collections.abc import Mapping, Sequence
import json
import pathlib

import numpy as np

from jaxagent import types
from jaxagent.rollouts import host as host_lib


def records(
  episodes: Sequence[host_lib.Episode],
  tokenizer,
  *,
  step: int,
  advantages=None,
  tokens: Mapping[str, np.ndarray] | None = None,
) -> list[dict]:
  """Rows of episodes with text, rewards, and numbers per token.

  Args:
    episodes: from a rollout.
    tokenizer: a `tokens.Tokenizer`.
    step: of training.
    advantages: f32[B, T] in the order of the assembled rows, or None.
    tokens: per-token numbers f32[B, T] in that order; `gate` and `gap` are
      found by the end of their names.

  Returns:
    One dict a row, as `report.trajectories` reads them.
  """
  flat = [(e, row) for e in episodes for row in e.rows]
  flat.sort(key=lambda pair: pair[1].uid)
  named = {}
  for name, values in (tokens or {}).items():
    short = name.rsplit('/', 1)[-1]
    if short in ('gate', 'gap'):
      named[short] = values
  out = []
  for b, (episode, row) in enumerate(flat):
    n, mask = len(row.ids), np.asarray(row.mask, bool)
    info = episode.outcome.info

    def column(values, b=b, n=n, mask=mask):
      shown = np.asarray(values)[b, :n]
      return [
        round(float(x), 4) if m else None
        for x, m in zip(shown, mask, strict=True)
      ]

    record = {
      'step': step,
      'episode': row.episode,
      'group': episode.task.group,
      'row': row.uid,
      'part': types.Part(row.part).name,
      'status': types.Status(episode.outcome.status).name,
      'game': str(info.get('game', episode.task.game)),
      'goal': str(info.get('goal', '')),
      'task_type': str(info.get('task_type', '')),
      'rewards': {k: float(v) for k, v in episode.outcome.rewards.items()},
      'tokens': tokenizer.pieces(row.ids),
      'action': mask.astype(int).tolist(),
      'turn': list(row.turn),
      'logprob': [round(float(x), 4) for x in row.logprobs],
      'privileged': _privileged(row, tokenizer),
    }
    if advantages is not None:
      record['advantages'] = column(advantages)
      acted = [a for a in record['advantages'] if a is not None]
      record['advantage'] = float(np.mean(acted)) if acted else 0.0
    for name, values in named.items():
      record[name] = column(values)
    out.append(record)
  return out


def write(path, rows: Sequence[Mapping]) -> None:
  """One JSON object a line; the file appears whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  fresh = path.with_suffix('.tmp')
  fresh.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  fresh.replace(path)


def _privileged(row, tokenizer):
  if row.privileged is None:
    return None
  return tokenizer.decode(row.privileged)
