"""Whether two models speak of the same tokens."""

from collections.abc import Mapping
import json
import pathlib
import tempfile

from jaxagent import tokens


def differences(one: tokens.Tokenizer, other: tokens.Tokenizer) -> list[str]:
  """What keeps ids of one tokenizer from meaning the same in the other.

  Ids and merges are compared, and what ends a reply. How a text is cut before
  the merges, and the chat template, are not: a teacher reads the ids of the
  policy's rows. Padded heads are no difference, ids beyond `vocab_size` mean
  nothing.

  Args:
    one: a tokenizer.
    other: the one to compare with.

  Returns:
    One sentence for each difference, with the first example.
  """
  (ids, merges), (other_ids, other_merges) = map(_contents, (one, other))
  told = []
  unlike = [
    token
    for token in sorted(ids.keys() | other_ids.keys())
    if ids.get(token) != other_ids.get(token)
  ]
  if unlike:
    first = unlike[0]
    told.append(
      f'{len(unlike)} tokens differ, such as {first!r}, which is'
      f' {_name(ids, first)} of {one.name!r} and {_name(other_ids, first)} of'
      f' {other.name!r}'
    )
  if merges != other_merges:
    same = zip(merges, other_merges, strict=False)
    rank = next((k for k, (a, b) in enumerate(same) if a != b), None)
    if rank is None:
      rank = min(len(merges), len(other_merges))
    told.append(
      f'merges differ ({len(merges)} and {len(other_merges)}) from rank {rank}'
    )
  if one.stop_id != other.stop_id:
    told.append(f'replies end with id {one.stop_id} and {other.stop_id}')
  return told


def _name(ids, token) -> str:
  return f'id {ids[token]}' if token in ids else 'no token'


def _contents(tokenizer) -> tuple[Mapping[str, int], list]:
  """Ids by token, added ones included, and merges in their order."""
  with tempfile.TemporaryDirectory() as folder:
    tokenizer.save(folder)
    saved = json.loads((pathlib.Path(folder) / 'tokenizer.json').read_text())
  added = {token['content']: token['id'] for token in saved['added_tokens']}
  return saved['model']['vocab'] | added, saved['model']['merges']
