"""Draws the subject with each method's chosen run, and writes the tables.

    python -m experiments.dreambooth.report DATA STUDY ... [--folder FOLDER]

DATA has model/ and subject/, each STUDY is a folder that study.py ran in. With
DATA alone, the model before training is drawn. Without both, only the tables of
the README are written, from results.jsonl.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from experiments import drawing, results
from lora_opt.evaluation.study import ranking, words
from lora_opt.evaluation.study import rows as study_rows
from lora_opt.models import LoraConfig, from_diffusers
from lora_opt.reading.json_text import read_json

FOLDER = pathlib.Path(__file__).parent
PROMPTS = (
  'a x seven on red',
  'a x seven on green',
  'a x seven on black',
  'a red seven on white',
)
_TARGET = r'unet/.*/attn[12]/to_(q|k|v|out\.0)'
_SAMPLES, _STEPS, _GUIDANCE = 4, 25, 1.5


def tables(folder: pathlib.Path) -> dict[str, str]:
  """The sections of the README, by their names."""
  rows = study_rows.read_rows(folder)
  ranked = ranking.rank(rows, study_rows.read_facts(folder).get('rates'))
  unit = words.unit(ranked)
  lines = []
  for place in ranked.places:
    (chosen,) = (found[place.method] for found in ranked.chosen.values())
    edge = ' (edge)' if chosen.at_edge else ''
    lines.append(
      (
        place.method,
        f'{chosen.learning_rate:g}{edge}',
        f'{unit.score(place.score.mean)} [{unit.span(place.score)}]',
        f'{unit.gap(place.behind.mean)} [{unit.gap_span(place.behind)}]',
        place.verdict,
      )
    )
  header = ('method', 'learning rate', 'validation loss', 'behind', 'verdict')
  (seeds,) = ranked.seeds.values() if ranked.seeds else ([],)
  parts = [
    results.markdown(header, lines) if lines else '',
    f'{len(rows)} runs have ended; methods are compared at the seeds '
    f'{", ".join(map(str, seeds)) or "(none yet)"}. '
    + ' '.join(words.sentences(ranked, {})),
    'Every run, as mean over its seeds (how many), of all examples:',
    _by_rate(rows),
  ]
  return {'table': '\n\n'.join(filter(None, parts))}


def _by_rate(rows: Sequence[Mapping]) -> str:
  """Mean loss of each method at each learning rate that was run."""
  rates = sorted({row['learning_rate'] for row in rows})
  lines = []
  for method in sorted({row['method'] for row in rows}):
    cells = []
    for rate in rates:
      found = [
        row.get('score', np.nan)
        for row in rows
        if (row['method'], row['learning_rate']) == (method, rate)
      ]
      cells.append(f'{np.mean(found):.4f} ({len(found)})' if found else '')
    lines.append((method, *cells))
  return results.markdown(['method', *(f'{rate:g}' for rate in rates)], lines)


def adapters(
  studies: Sequence[pathlib.Path], folder: pathlib.Path
) -> dict[str, str]:
  """The adapter folder of each method's chosen run, for its first seed.

  Args:
    studies: folders that study.py ran in.
    folder: folder of results.jsonl.
  """
  rows = study_rows.read_rows(folder)
  ranked = ranking.rank(rows, study_rows.read_facts(folder).get('rates'))
  places = {
    tuple(flags): study / f'{number:04d}/adapter'
    for study in studies
    for number, flags in enumerate(read_json(study / 'runs.json', kind=list))
  }
  return {
    method: str(places[tuple(chosen.rows[0]['flags'])])
    for found in ranked.chosen.values()
    for method, chosen in found.items()
  }


def draw(
  data: pathlib.Path, paths: Mapping[str, str], picture: pathlib.Path
) -> None:
  """Draws a row per prompt, and a column for the model and for each method."""
  model = from_diffusers(
    data / 'model', lora=LoraConfig(target=_TARGET, rank=4, alpha=4.0)
  )
  tokens = model.encode_texts([p for p in PROMPTS for _ in range(_SAMPLES)])
  noise = np.concatenate(
    [np.asarray(model.start_noise(0, _SAMPLES))] * len(PROMPTS)
  )
  columns = {'before': None} | {
    method: model.load_adapter(path) for method, path in paths.items()
  }
  canvas, axes = drawing.panels(len(PROMPTS) + 1, len(columns), 2.1, 0.75)
  subject = sorted((data / 'subject/train').glob('*.png'))
  shown = [np.asarray(Image.open(path)) for path in subject]
  for column, (name, lora) in enumerate(columns.items()):
    images = model.sample(
      model.base,
      lora if lora is not None else _zero(model),
      tokens,
      steps=_STEPS,
      guidance_scale=_GUIDANCE,
      noise=noise,
    )
    images = np.uint8(np.round(255 * np.asarray(images)))
    for row in range(len(PROMPTS)):
      cell = images[row * _SAMPLES : (row + 1) * _SAMPLES]
      _show(axes[row + 1, column], cell)
      if column == 0:
        axes[row + 1, 0].set_title(PROMPTS[row], fontsize=7, loc='left')
    axes[0, column].axis('off')
    axes[0, column].text(0, 0, name, fontsize=11)
  _show(axes[0, 0], np.stack(shown))
  axes[0, 0].set_title('the subject; below: before training', fontsize=7,
                       loc='left')  # fmt: skip
  axes[0, 0].texts[0].remove()
  drawing.save(canvas, picture)


def _zero(model):
  """An adapter that changes nothing, so that the same program can be used."""
  import jax

  return model.init(jax.random.key(0))


def _show(panel, pictures: np.ndarray) -> None:
  gap = np.full((pictures.shape[1], 1, 3), 255, np.uint8)
  strip = np.concatenate(
    [part for picture in pictures for part in (picture, gap)], axis=1
  )
  panel.imshow(strip, interpolation='nearest')
  panel.axis('off')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('data', nargs='?', type=pathlib.Path)
  parser.add_argument('study', nargs='*', type=pathlib.Path)
  parser.add_argument('--folder', type=pathlib.Path, default=FOLDER)
  options = parser.parse_args()
  readme = options.folder / 'README.md'
  text = readme.read_text(encoding='utf-8')
  for name, section in tables(options.folder).items():
    text = results.with_section(text, name, section)
  readme.write_text(text, encoding='utf-8')
  if options.study:
    found = adapters(options.study, options.folder)
    draw(options.data, found, options.folder / 'pictures.png')
  elif options.data:
    draw(options.data, {}, options.folder / 'pretrained.png')


if __name__ == '__main__':
  sys.exit(main())
