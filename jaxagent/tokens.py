"""Text to token ids and back: a tokenizer and its chat template, on the host.

Ids that the policy sampled are kept as they are; only what surrounds them
(openings, observations) is ever encoded. A row therefore is
`chat(opening) + sampled + extend(observation) + sampled + ...`.

Text from messages and environments is inert: the string `<|im_end|>` in an
observation is encoded letter by letter and never becomes the special token,
whereas the same string written by the template does. Added tokens that the
tokenizer does not call special, such as Qwen3's `<think>`, are words.
"""

import codecs
from collections.abc import Iterable, Mapping, Sequence
import functools
import json
import pathlib
import re
from typing import Any

import jinja2
from jinja2 import sandbox
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

_ASSETS = pathlib.Path(__file__).parent / 'assets'
_SENTINEL = 'jaxagentreply'
_GUARD = '\ue0fe'  # private use: parts the letters of a special token in text
_QWEN2_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class TemplateError(ValueError):
  """The chat template is missing, or refused the messages."""


class Tokenizer:
  """A byte-level BPE tokenizer with the chat template of its model.

  Attributes:
    name: for messages and file names.
    vocab_size: number of ids known here; a model's head may be padded beyond.
    pad_id: fills rows on the right.
    stop_ids: every id that ends a reply.
    stop_id: the one the template writes after a reply; whoever extends a row
      inserts it where a reply was cut.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    template: str,
    stop_ids: Iterable[int | None] = (),
    pad_id: int | None = None,
    special_tokens: Mapping[str, str] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    name: str = 'tokenizer',
  ):
    """Builds a tokenizer from its parts; `load` reads them from a folder.

    Args:
      backend: a `tokenizers` tokenizer with a ByteLevel decoder; from now on
        this object's own.
      template: jinja2 text; sees `messages`, `add_generation_prompt`, the
        names in `special_tokens` and `template_kwargs`.
      stop_ids: what else ends a reply, beside the template's own stop token;
        None stands for a token that the model does not have.
      pad_id: by default the stop token.
      special_tokens: such as {'bos_token': '<s>'}, for the template.
      template_kwargs: such as {'enable_thinking': False}.
      name: see the class.

    Raises:
      ValueError: the tokenizer is not byte-level.
      TemplateError: the template does not parse, fails on a plain exchange, or
        ends a reply with no special token.
    """
    self.name = name
    if not isinstance(backend.decoder, decoders.ByteLevel):
      raise ValueError(
        f'Tokenizer {name!r} does not decode bytes (ByteLevel). Only byte-level'
        ' BPE is supported: Qwen, Llama 3, SmolLM2, GPT-2 and the like.'
      )
    self._backend = backend
    self._backend.no_truncation()
    self._backend.no_padding()
    self._backend.encode_special_tokens = True  # i.e. as plain text
    added = self._backend.get_added_tokens_decoder()
    self._special_ids = {t.content: i for i, t in added.items() if t.special}
    self._special = _special_pattern(t for t in added.values() if t.special)
    self.vocab_size = 1 + max(self._backend.get_vocab(True).values())
    self._special_tokens = dict(special_tokens or {})
    self._template_kwargs = dict(template_kwargs or {})
    self._template_text = template
    self._template = _compile(template, name)
    self.stop_id = self._find_stop()
    known = {self.stop_id, *stop_ids} - {None}
    self.stop_ids = tuple(sorted(map(int, known)))
    self.pad_id = self.stop_id if pad_id is None else int(pad_id)

  def encode(self, text: str) -> list[int]:
    """Ids of plain text; special tokens spelled in it stay plain text."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def pieces(self, ids: Iterable[int]) -> list[str]:
    """One readable string per token; together they are `decode(ids)`.

    A character that spans several tokens stands at its last one, and the
    others are empty. Bytes that are no UTF-8 become U+FFFD, as does an id
    beyond the vocabulary (heads are often padded).
    """
    table = self._bytes
    utf8 = codecs.getincrementaldecoder('utf-8')('replace')
    out = [utf8.decode(table.get(int(i), b'\xff')) for i in ids]
    if out:
      out[-1] += utf8.decode(b'', final=True)
    return out

  def decode(self, ids: Iterable[int]) -> str:
    """The text of the ids, special tokens included."""
    return ''.join(self.pieces(ids))

  def completion(self, ids: Iterable[int]) -> str:
    """The text of a sampled reply: no stop token, no other special token."""
    special = set(self._special_ids.values()).union(self.stop_ids)
    return self.decode(i for i in ids if int(i) not in special)

  def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of a conversation up to and including the assistant's header.

    Args:
      messages: `{'role': ..., 'content': ...}`; roles as the template knows
        them: system, user, assistant.

    Raises:
      TemplateError: the template refused the messages.
    """
    return self._encode_rendered(self._render(messages))

  def extend(self, observation: str) -> list[int]:
    """Ids that follow a reply's stop token, up to the next reply.

    They are the rest of the assistant's turn, a user message with the
    observation, and the assistant's header. The stop token itself is not
    among them: it was sampled, or the caller inserts `stop_id`.
    """
    _, rest = self._after_reply(observation)
    return self._encode_rendered(rest)

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes the files `load` reads; `template_kwargs` are not among them."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._backend.save(str(folder / 'tokenizer.json'))
    (folder / 'chat_template.jinja').write_text(self._template_text)
    names = {i: token for token, i in self._special_ids.items()}
    config = dict(self._special_tokens)
    config.setdefault('eos_token', names[self.stop_id])
    config['tokenizer_class'] = 'PreTrainedTokenizerFast'
    if self.pad_id in names:
      config['pad_token'] = names[self.pad_id]
    _write_json(folder / 'tokenizer_config.json', config)
    path = folder / 'generation_config.json'
    generation = _read_json(path)  # a model's own settings stay
    generation['eos_token_id'] = list(self.stop_ids)
    generation['pad_token_id'] = self.pad_id
    _write_json(path, generation)

  @functools.cached_property
  def _bytes(self) -> dict[int, bytes]:
    added = self._backend.get_added_tokens_decoder()
    table = {i: token.content.encode() for i, token in added.items()}
    to_byte = _byte_of_character()
    for token, i in self._backend.get_vocab(False).items():
      if i not in table:
        table[i] = bytes(to_byte[character] for character in token)
    return table

  def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
    guarded = [
      {key: self._guard(value) for key, value in message.items()}
      for message in messages
    ]
    variables = {
      'tools': None,
      'documents': None,
      **self._special_tokens,
      **self._template_kwargs,
    }
    try:
      return self._template.render(
        messages=guarded, add_generation_prompt=True, **variables
      )
    except Exception as error:  # templates are programs
      roles = [message.get('role') for message in messages]
      raise TemplateError(
        f'The chat template of {self.name!r} refused messages with roles'
        f' {roles}: {error}. Change the messages, or the template.'
      ) from error

  def _guard(self, text: str) -> str:
    # A mark after every letter, so that overlapping names are broken as well.
    return self._special.sub(
      lambda found: ''.join(letter + _GUARD for letter in found[0]),
      text.replace(_GUARD, ''),
    )

  def _encode_rendered(self, text: str) -> list[int]:
    ids = []
    for part in self._special.split(text):
      if part in self._special_ids:
        ids.append(self._special_ids[part])
      elif part:
        ids.extend(self.encode(part.replace(_GUARD, '')))
    return ids

  def _after_reply(self, observation: str) -> tuple[str | None, str]:
    """The special token after a reply, and the text behind that token."""
    text = self._render(
      [
        {'role': 'user', 'content': 'observation'},
        {'role': 'assistant', 'content': _SENTINEL},
        {'role': 'user', 'content': observation},
      ]
    )
    _, found, after = text.partition(_SENTINEL)
    stop = self._special.match(after) if found else None
    return (stop[1], after[stop.end() :]) if stop else (None, after)

  def _find_stop(self) -> int:
    stop, _ = self._after_reply('observation')
    if stop is None:
      raise TemplateError(
        f'The chat template of {self.name!r} writes no special token right'
        ' after a reply, so that the end of a reply is unknown. Use a template'
        " that ends an assistant's turn with one of"
        f' {sorted(self._special_ids)}.'
      )
    return self._special_ids[stop]


def load(
  folder: str | pathlib.Path,
  *,
  template_kwargs: Mapping[str, Any] | None = None,
) -> Tokenizer:
  """Reads a tokenizer from a Hugging Face folder.

  Reads `tokenizer.json`; the template from `chat_template.jinja` or
  `tokenizer_config.json`; what ends a reply from `tokenizer_config.json` and
  `generation_config.json` (or `config.json`), and the template itself.
  `strftime_now` is left undefined, so that a template which prints the date
  falls back to its fixed one and a prompt depends on nothing but its messages.

  Args:
    folder: of a model or a tokenizer.
    template_kwargs: variables for the template, e.g.
      `{'enable_thinking': False}` for Qwen3.

  Raises:
    FileNotFoundError: there is no `tokenizer.json`.
    TemplateError: there is no chat template, or it is unusable.
  """
  folder = pathlib.Path(folder)
  path = folder / 'tokenizer.json'
  if not path.is_file():
    raise FileNotFoundError(
      f'No tokenizer.json in {str(folder)!r}. Give the folder of a Hugging Face'
      ' model, or export one with `tokenizer.save_pretrained(folder)`.'
    )
  config = _read_json(folder / 'tokenizer_config.json')
  backend = tokenizers.Tokenizer.from_file(str(path))
  special = {
    key: value['content'] if isinstance(value, dict) else value
    for key, value in config.items()
    if key.endswith('_token') and isinstance(value, dict | str)
  }
  generation = _read_json(folder / 'config.json')
  generation |= _read_json(folder / 'generation_config.json')
  stops = generation.get('eos_token_id')
  stops = list(stops) if isinstance(stops, list) else [stops]
  stops.append(backend.token_to_id(special.get('eos_token', '')))
  return Tokenizer(
    backend,
    template=_find_template(folder, config),
    stop_ids=stops,
    pad_id=backend.token_to_id(special.get('pad_token', '')),
    special_tokens=special,
    template_kwargs=template_kwargs,
    name=folder.resolve().name,
  )


def from_gguf(
  path: str | pathlib.Path,
  *,
  template_kwargs: Mapping[str, Any] | None = None,
) -> Tokenizer:
  """Rebuilds the tokenizer that a GGUF file carries in its header.

  Args:
    path: of a file with a BPE tokenizer (`tokenizer.ggml.model` is `gpt2`)
      and one of the known pre-tokenizers: smollm, qwen2.
    template_kwargs: see `load`.

  Raises:
    ImportError: the `gguf` package is missing.
    ValueError: another kind of tokenizer.
  """
  try:
    import gguf
  except ImportError as error:
    raise ImportError(
      "Reading GGUF files needs the gguf package: pip install 'jaxagent[gguf]'."
    ) from error
  fields = gguf.GGUFReader(str(path)).fields

  def field(key: str, default: Any = None) -> Any:
    return fields[key].contents() if key in fields else default

  model, splitter = field('tokenizer.ggml.model'), field('tokenizer.ggml.pre')
  if model != 'gpt2' or splitter not in _GGUF_PIPELINES:
    raise ValueError(
      f'{str(path)!r} has a tokenizer of model {model!r} and pre-tokenizer'
      f' {splitter!r}; supported are model gpt2 with {sorted(_GGUF_PIPELINES)}.'
      ' Use the Hugging Face folder of the model instead.'
    )
  names = field('tokenizer.ggml.tokens')
  merges = [tuple(m.split(' ')) for m in field('tokenizer.ggml.merges')]
  vocab = {token: i for i, token in enumerate(names)}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
  backend.normalizer, backend.pre_tokenizer = _GGUF_PIPELINES[splitter]
  backend.decoder = decoders.ByteLevel()
  types = field('tokenizer.ggml.token_type')
  for token, kind in zip(names, types, strict=True):
    if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
      special = kind == gguf.TokenType.CONTROL
      backend.add_tokens([tokenizers.AddedToken(token, special=special)])
  ids = {
    'bos_token': field('tokenizer.ggml.bos_token_id'),
    'eos_token': field('tokenizer.ggml.eos_token_id'),
    'pad_token': field('tokenizer.ggml.padding_token_id'),
  }
  template = field('tokenizer.chat_template')
  if template is None:
    raise TemplateError(f'{str(path)!r} carries no chat template.')
  return Tokenizer(
    backend,
    template=template,
    stop_ids=[ids['eos_token']],
    pad_id=ids['pad_token'],
    special_tokens={k: names[i] for k, i in ids.items() if i is not None},
    template_kwargs=template_kwargs,
    name=pathlib.Path(path).stem,
  )


@functools.cache
def default() -> Tokenizer:
  """The tokenizer of the embedded household worlds: 1024 ids, few per word."""
  return load(_ASSETS / 'household_tokenizer')


def _special_pattern(
  added: Iterable[tokenizers.AddedToken],
) -> re.Pattern[str]:
  """Matches a special token, as group 1."""
  longest_first = sorted(added, key=lambda t: (-len(t.content), t.content))
  if not longest_first:
    return re.compile('(?!)()')
  names = '|'.join(re.escape(token.content) for token in longest_first)
  return re.compile(f'({names})')


def _compile(template: str, name: str) -> jinja2.Template:
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=['jinja2.ext.loopcontrols'],
  )
  environment.filters['tojson'] = functools.partial(
    json.dumps, ensure_ascii=False
  )

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  environment.globals['raise_exception'] = raise_exception
  try:
    return environment.from_string(template)
  except jinja2.TemplateSyntaxError as error:
    raise TemplateError(
      f'The chat template of {name!r} is not valid jinja2, line'
      f' {error.lineno}: {error}.'
    ) from error


def _find_template(folder: pathlib.Path, config: Mapping[str, Any]) -> str:
  path = folder / 'chat_template.jinja'
  if path.is_file():
    return path.read_text()
  template = config.get('chat_template')
  if isinstance(template, list):  # several, by name
    named = {entry['name']: entry['template'] for entry in template}
    template = named.get('default')
  if template is None:
    raise TemplateError(
      f'No chat template in {str(folder)!r}: neither chat_template.jinja nor'
      ' `chat_template` in tokenizer_config.json. Base models have none: use'
      " the instruct model's tokenizer files, or write a chat_template.jinja."
    )
  return template


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f'{str(path)!r} is not valid JSON: {error}.') from error


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n')


@functools.cache
def _byte_of_character() -> dict[str, int]:
  """GPT-2's spelling of bytes: printable ones as they are, others from 256."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  spelled = {chr(byte): byte for byte in printable}
  return spelled | {chr(256 + n): byte for n, byte in enumerate(others)}


_GGUF_PIPELINES = {
  'smollm': (
    None,
    pre_tokenizers.Sequence(
      [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
      ]
    ),
  ),
  'qwen2': (
    normalizers.NFC(),
    pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(tokenizers.Regex(_QWEN2_SPLIT), 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    ),
  ),
}
