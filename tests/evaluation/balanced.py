"""A page whose elements are all closed."""

import html.parser


class Balanced(html.parser.HTMLParser):
  """Every element of a page is closed, in order."""

  def check(self, text):
    self.open = []
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'br'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag
