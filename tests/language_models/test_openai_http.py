import http.server
import json
import threading
import time

import pytest

from jaxagent.agents import protocol
from jaxagent.language_models import base, openai_http

openai = pytest.importorskip('openai')
ASK = [protocol.system('be brief'), protocol.user('where is the mug?')]


def choice(text, finish='stop'):
  return {
    'id': 'x',
    'object': 'chat.completion',
    'created': 0,
    'model': 'm',
    'choices': [
      {
        'index': 0,
        'finish_reason': finish,
        'message': {'role': 'assistant', 'content': text},
      }
    ],
  }


@pytest.fixture
def serve(monkeypatch):
  """Starts a server that answers with the given (status, body, delay)s."""
  delay = 'openai._base_client.INITIAL_RETRY_DELAY'
  monkeypatch.setattr(delay, 0.01, raising=False)
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  servers = []

  def start(*answers):
    seen, left = [], list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        size = int(self.headers['Content-Length'])
        seen.append((self.path, json.loads(self.rfile.read(size))))
        status, body, delay = left.pop(0) if len(left) > 1 else left[0]
        time.sleep(delay)
        data = json.dumps(body).encode()
        try:
          self.send_response(status)
          self.send_header('Content-Type', 'application/json')
          self.send_header('Content-Length', str(len(data)))
          self.end_headers()
          self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
          pass

      def log_message(self, *args):
        pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    servers.append(server)
    threading.Thread(
      target=server.serve_forever, args=(0.01,), daemon=True
    ).start()
    return f'http://127.0.0.1:{server.server_port}/v1', seen

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


def test_request_and_reply(serve):
  url, seen = serve((200, choice('on the shelf'), 0))
  model = openai_http.openai_http(
    model='m', base_url=url, sampling={'temperature': 0.0}
  )
  assert model(ASK, max_new=9) == protocol.Completion('on the shelf')
  path, body = seen[0]
  assert path == '/v1/chat/completions'
  assert body == {
    'model': 'm', 'messages': ASK, 'max_tokens': 9, 'temperature': 0.0
  }  # fmt: skip


def test_other_name_of_the_limit(serve):
  url, seen = serve((200, choice('x'), 0))
  model = openai_http.openai_http(
    model='m', base_url=url, limit='max_completion_tokens'
  )
  model(ASK, max_new=9)
  assert seen[0][1]['max_completion_tokens'] == 9
  assert 'max_tokens' not in seen[0][1]


def test_cut_and_empty_replies(serve):
  url, _ = serve((200, choice(None, finish='length'), 0))
  model = openai_http.openai_http(model='m', base_url=url)
  assert model(ASK, max_new=9) == protocol.Completion('', truncated=True)


def test_failures_are_tried_again(serve):
  busy = (503, {'error': 'busy'}, 0)
  url, seen = serve(busy, (429, {}, 0), (200, choice('x'), 0))
  model = openai_http.openai_http(model='m', base_url=url, max_retries=2)
  assert model(ASK, max_new=9).text == 'x'
  assert len(seen) == 3


@pytest.mark.parametrize(
  'answer, tries',
  [
    ((500, {}, 0), 2),
    ((401, {'error': 'no such key'}, 0), 1),
    ((404, {'error': 'no such model'}, 0), 1),
    ((200, choice('late'), 2.0), 2),
  ],
  ids=['server', 'key', 'model', 'timeout'],
)
def test_errors_name_server_and_model(serve, answer, tries):
  url, seen = serve(answer)
  model = openai_http.openai_http(
    model='m', base_url=url, timeout=0.5, max_retries=1
  )
  with pytest.raises(base.LanguageModelError, match=f"{url}.*of 'm'") as caught:
    model(ASK, max_new=9)
  assert isinstance(caught.value.__cause__, openai.OpenAIError)
  assert len(seen) == tries


def test_an_answer_that_is_no_completion(serve):
  url, _ = serve((200, {'hello': 'world'}, 0))
  model = openai_http.openai_http(model='m', base_url=url)
  with pytest.raises(base.LanguageModelError, match='without choices'):
    model(ASK, max_new=9)


def test_nobody_listens(serve):
  model = openai_http.openai_http(
    model='m', base_url='http://127.0.0.1:9/v1', max_retries=0
  )
  with pytest.raises(base.LanguageModelError, match='APIConnectionError'):
    model(ASK, max_new=9)


def test_no_key(monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  monkeypatch.delenv('OPENAI_BASE_URL', raising=False)
  with pytest.raises(base.LanguageModelError, match='Set OPENAI_API_KEY'):
    openai_http.openai_http(model='m')
