"""Emulators of Google Cloud Storage and S3 on loopback, for tests.

  python -m tests.buckets.servers gs|s3 PORT

serves one of them until it is told to end, with an empty bucket `bucket`.
Google's is gcp-storage-emulator, S3's is moto. The first does not heed
preconditions, without which nothing exclusive can be made: they are added here.
"""

import contextlib
import http
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

from tests.training.launching import free_port

BUCKET = 'bucket'


def environment(scheme: str, port: int) -> dict[str, str]:
  """What a program needs to know to talk to an emulator."""
  url = f'http://127.0.0.1:{port}'
  if scheme == 'gs':
    return {
      # gcsfs and google-cloud-storage; tensorstore.
      'STORAGE_EMULATOR_HOST': url,
      'TENSORSTORE_GCS_HTTP_URL': url,
      # No credentials, and no search for them.
      'FSSPEC_GS_TOKEN': 'anon',
      'GCE_METADATA_ROOT': '127.0.0.1:1',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }
  return {
    'AWS_ENDPOINT_URL': url,
    'AWS_ACCESS_KEY_ID': 'test',
    'AWS_SECRET_ACCESS_KEY': 'test',
    'AWS_DEFAULT_REGION': 'us-east-1',
  }


@contextlib.contextmanager
def serve(scheme: str, log: pathlib.Path) -> Iterator[dict[str, str]]:
  """Serves in a process of its own; gives the environment of its clients."""
  port = free_port()
  with log.open('w', encoding='utf-8') as out:
    process = subprocess.Popen(
      [sys.executable, '-m', 'tests.buckets.servers', scheme, str(port)],
      stdout=out,
      stderr=out,
    )
  try:
    _wait(f'http://127.0.0.1:{port}/', process, log)
    yield environment(scheme, port)
  finally:
    process.terminate()
    process.wait()


def _wait(url: str, process: subprocess.Popen, log: pathlib.Path) -> None:
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline and process.poll() is None:
    with contextlib.suppress(OSError):
      urllib.request.urlopen(url, timeout=5).close()
      return
    time.sleep(0.05)
  raise AssertionError(log.read_text(encoding='utf-8'))


def _gs(port: int) -> None:
  from gcp_storage_emulator import server as emulator
  from gcp_storage_emulator.exceptions import NotFound

  lock = threading.Lock()

  def generation(handler, path, name):
    """That of an object; '0' if there is none."""
    bucket = path.partition('/b/')[2].partition('/o')[0]
    try:
      return handler.storage.get_file_obj(bucket, name)['generation']
    except NotFound:
      return '0'

  class Response(emulator.Response):
    def close(self):
      path, _, query = self._handler.path.partition('?')
      if 'alt=media' in query and self._handler.command == 'GET':
        name = urllib.parse.unquote(path.partition('/o/')[2])
        self['x-goog-generation'] = generation(self._handler, path, name)
      # A client may leave before it has read all.
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        super().close()

  class Router(emulator.Router):
    def handle(self, method):
      handler = self._request_handler
      request = emulator.Request(handler, method)
      wanted = request.query.get('ifGenerationMatch')
      with lock:
        if wanted and method == 'POST' and request.path.endswith('/o'):
          name = request.query.get('name') or [request.data['meta']['name']]
          if generation(handler, request.path, name[0]) != wanted[0]:
            response = Response(handler)
            response.status = http.HTTPStatus.PRECONDITION_FAILED
            response.json({'error': {'code': 412, 'message': 'not met'}})
            response.close()
            return
          handler.kept_data = request.data
        super().handle(method)

  read_data = emulator._read_data

  def read_once(handler, query):
    kept = getattr(handler, 'kept_data', None)
    return read_data(handler, query) if kept is None else kept

  emulator.Response, emulator.Router = Response, Router
  emulator._read_data = read_once
  server = emulator.create_server(
    '127.0.0.1', port, in_memory=True, default_bucket=BUCKET
  )
  server.run()


def _s3(port: int) -> None:
  import boto3
  from moto.server import ThreadedMotoServer

  os.environ.update(environment('s3', port))
  server = ThreadedMotoServer('127.0.0.1', port, verbose=False)
  server.start()
  boto3.client('s3').create_bucket(Bucket=BUCKET)
  threading.Event().wait()


if __name__ == '__main__':
  {'gs': _gs, 's3': _s3}[sys.argv[1]](int(sys.argv[2]))
