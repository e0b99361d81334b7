"""A model behind an endpoint that speaks OpenAI's chat completions.

Among others: OpenAI, vLLM, SGLang, llama.cpp's server, Ollama.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from jaxagent.agents import protocol
from jaxagent.language_models import base


def openai_http(
  *,
  model: str,
  base_url: str | None = None,
  api_key: str | None = None,
  timeout: float = 60.0,
  max_retries: int = 4,
  limit: str = 'max_tokens',
  sampling: Mapping[str, Any] | None = None,
) -> base.LanguageModel:
  """A language model over HTTP.

  Needs the `http` extra. Connection failures, time-outs and the statuses 408,
  409, 429 and 5xx are tried again with growing pauses.

  Args:
    model: as the endpoint names it.
    base_url: such as http://localhost:8000/v1; by default OPENAI_BASE_URL,
      else OpenAI's.
    api_key: by default OPENAI_API_KEY; a server of one's own may need none.
    timeout: seconds, of one try.
    max_retries: tries after the first.
    limit: the request's name for `max_new`; OpenAI's reasoning models want
      `max_completion_tokens`.
    sampling: further fields of the request, such as
      `{'temperature': 0.0, 'seed': 1}`.

  Raises:
    ImportError: the `openai` package is missing.
    LanguageModelError: by the returned model, once the tries are used up.
  """
  try:
    import openai
  except ImportError as error:
    raise ImportError(
      "Models over HTTP need the openai package: pip install 'jaxagent[http]'."
    ) from error
  own_server = base_url is not None or 'OPENAI_BASE_URL' in os.environ
  if api_key is None and own_server and 'OPENAI_API_KEY' not in os.environ:
    api_key = 'none'
  try:
    client = openai.OpenAI(
      base_url=base_url,
      api_key=api_key,
      timeout=timeout,
      max_retries=max_retries,
    )
  except openai.OpenAIError as error:
    raise base.LanguageModelError(
      f'{error}. Set OPENAI_API_KEY, or give base_url.'
    ) from error

  def language_model(
    messages: Sequence[Mapping[str, str]], *, max_new: int
  ) -> protocol.Completion:
    try:
      response = client.chat.completions.create(
        model=model,
        messages=[dict(message) for message in messages],
        **{limit: max_new},
        **dict(sampling or {}),
      )
    except openai.OpenAIError as error:
      raise base.LanguageModelError(
        f'{client.base_url} gave no reply of {model!r} in'
        f' {1 + max_retries} tries of {timeout} s:'
        f' {type(error).__name__}: {error}. Check that the server runs, that it'
        ' serves this model, and the key.'
      ) from error
    return _completion(response, url=str(client.base_url))

  return language_model


def _completion(response: Any, *, url: str) -> protocol.Completion:
  choices = getattr(response, 'choices', None)
  if not choices:
    raise base.LanguageModelError(
      f'{url} answered without choices: {str(response)[:200]!r}. Is this the'
      ' address of an OpenAI-compatible API, usually ending in /v1?'
    )
  return protocol.Completion(
    text=choices[0].message.content or '',
    truncated=choices[0].finish_reason == 'length',
  )
