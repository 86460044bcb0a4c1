"""A server on loopback that speaks as much of the hub's protocol as is asked.

Repositories are folders: root/models/org/name and root/datasets/org/name.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import pathlib
import re
import threading
from collections.abc import Iterator

COMMIT = '0123456789' * 4
_RESOLVE = re.compile(r'/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)')
_API = re.compile(
  r'/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/([^/?]+)'
)


@dataclasses.dataclass
class Hub:
  """What is served, and what was asked for.

  Attributes:
    root: Of the repositories.
    url: For HF_ENDPOINT.
    asked: Method, path and range of each request.
    token: That a gated repository asks for; org is 'gated'.
    cut: Bytes after which the connection of the next large file is closed.
  """

  root: pathlib.Path
  url: str = ''
  asked: list[tuple[str, str, str | None]] = dataclasses.field(
    default_factory=list
  )
  token: str = 'secret'
  cut: int | None = None

  def fetched(self) -> set[str]:
    """Names of the files whose content was asked for."""
    paths = (
      _RESOLVE.match(path) for method, path, _ in self.asked if method == 'GET'
    )
    return {match[4] for match in paths if match}


@contextlib.contextmanager
def serve(root: pathlib.Path) -> Iterator[Hub]:
  hub = Hub(root)

  class Handler(_Handler):
    served = hub

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    hub.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
      yield hub
    finally:
      server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
  served: Hub

  def do_GET(self):
    self._answer()

  def do_HEAD(self):
    self._answer()

  def log_message(self, *arguments):
    pass

  def _answer(self):
    ranged = self.headers.get('Range')
    self.served.asked.append((self.command, self.path, ranged))
    if match := _API.match(self.path):
      self._describe(*match.groups())
    elif match := _RESOLVE.match(self.path):
      kind = 'datasets' if match[1] else 'models'
      self._file(kind, match[2], match[3], match[4])
    else:
      self._refuse(404, 'EntryNotFound')

  def _folder(self, kind, name, revision):
    folder = self.served.root / kind / name
    if not folder.is_dir():
      self._refuse(404, 'RepoNotFound')
    elif revision not in ('main', COMMIT):
      self._refuse(404, 'RevisionNotFound')
    elif name.startswith('gated/') and (
      self.headers.get('authorization') != f'Bearer {self.served.token}'
    ):
      self._refuse(403, 'GatedRepo')
    else:
      return folder

  def _describe(self, kind, name, what, revision):
    if (folder := self._folder(kind, name, revision)) is None:
      return
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    names = [str(p.relative_to(folder)) for p in files]
    if what == 'revision':
      siblings = [{'rfilename': name} for name in names]
      content = {'id': name, 'sha': COMMIT, 'siblings': siblings}
    else:
      content = [
        {'type': 'file', 'path': name, 'size': p.stat().st_size, 'oid': _oid(p)}
        for name, p in zip(names, files, strict=True)
      ]
    self._send(200, json.dumps(content).encode())

  def _file(self, kind, name, revision, path):
    if (folder := self._folder(kind, name, revision)) is None:
      return
    file = folder / path
    if not file.is_file():
      return self._refuse(404, 'EntryNotFound')
    data, start = file.read_bytes(), 0
    if ranged := re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range') or ''):
      start = int(ranged[1])
    headers = {'ETag': f'"{_oid(file)}"', 'X-Repo-Commit': COMMIT}
    if start:
      headers['Content-Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
    self._send(206 if start else 200, data[start:], headers)

  def _refuse(self, status, code):
    self._send(status, b'', {'X-Error-Code': code})

  def _send(self, status, data, headers=()):
    self.send_response(status)
    for key, value in dict(headers).items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    if self.command == 'HEAD':
      return
    cut = self.served.cut
    if cut is not None and len(data) > cut:
      self.served.cut = None
      self.wfile.write(data[:cut])
      self.close_connection = True
      return
    self.wfile.write(data)


def _oid(file: pathlib.Path) -> str:
  return hashlib.sha1(file.read_bytes()).hexdigest()
