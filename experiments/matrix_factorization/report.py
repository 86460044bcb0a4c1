"""Makes the tables and plots of `run.py` from the committed results."""

import numpy as np

from experiments import drawing, results, sweeps
from experiments.matrix_factorization import bound
from experiments.matrix_factorization.run import (
  FOLDER,
  PAPER_RATES,
  PLAIN,
  STEPS,
  TARGET,
  steps_to,
)

# Read off the paper's figure: (method, rate) -> what it shows.
PUBLISHED = {
  ('LoRA', 0.01): 'loss 300 after 100 steps',
  ('LoRA', 0.03): 'diverges within 4 steps',
  ('ScaledGD', 0.01): 'loss 95 after 100 steps',
  ('ScaledGD', 0.03): 'loss 2.6 after 100 steps',
  ('RefLoRA', 0.01): 'loss 1e-3 after 37 steps',
  ('RefLoRA', 0.03): 'loss 1e-3 after 11 steps',
}
# Panels of the sweep, by family, so that lines can be told apart.
PANELS = (
  ('sgd', 'scaled_gd, reg = 0', 'RefLoRA, SGD', 'RefLoRA-S, SGD', 'altlora'),
  ('adamw', 'lora_plus', 'reflora', 'reflora, real', 'reflora_s', 'lamb'),
  ('adamw', 'lora_rite', 'lora_muon', 'muon', 'shampoo', 'lora_pro'),
)


def paper_table(rows) -> str:
  lines = []
  for row in rows:
    losses, key = row['losses'], (row['method'], row['rate'])
    count = steps_to(TARGET, losses)
    end = sweeps.geometric_mean(losses[:, -1])
    if np.isfinite(count).all():
      low, high = int(count.min()), int(count.max())
      text = f'loss 1e-3 after {np.mean(count):.0f} steps [{low} to {high}]'
    elif np.isfinite(end.middle) and end.middle < 1e5:
      text = f'loss {end.text()} after {losses.shape[1] - 1} steps'
    else:
      above = steps_to(-1e6, -losses)
      text = f'diverges: above 1e6 after {int(above.max())} steps'
    lines.append([row['method'], row['rate'], PUBLISHED.get(key, ''), text])
  return results.markdown(['', 'step size', 'paper', 'here'], lines)


def sweep_table(rows) -> str:
  """One row per method, ordered by the faster of both schedules."""
  lines = {}
  for row in rows:
    best = sweeps.best_rate(row['rates'], row['losses'])
    counts = np.mean(row['steps_to_target'], axis=1)
    i = int(np.argmin(counts))
    count = row['steps_to_target'][i]
    soonest = 'never'
    if np.isfinite(counts[i]):
      soonest = f'{counts[i]:.0f} [{count.min():.0f} to {count.max():.0f}]'
    line = [best.rate_text(), best.loss.text(), f'{best.octaves:.1f}', soonest]
    rank = (counts[i], best.loss.middle)
    lines.setdefault(row['method'], []).append((rank, line))
  # Sort methods that reach the target by their steps, the others by loss.
  ordered = sorted(lines.items(), key=lambda x: min(rank for rank, _ in x[1]))
  header = ['method', 'best rate, constant', 'loss after 100 steps', 'octaves',
            'steps to 1e-3', 'best rate, cosine', 'loss after 100 steps',
            'octaves', 'steps to 1e-3']  # fmt: skip
  return results.markdown(
    header, [[k, *constant[1], *cosine[1]] for k, (constant, cosine) in ordered]
  )


def bound_table(rows) -> str:
  def over_seeds(name, digits=2):
    return sweeps.geometric_mean([row[name] for row in rows]).text(digits)

  lines = [
    [label, over_seeds(f'{name}_size'), over_seeds(f'{name}_loss', 3),
     over_seeds(f'{name}_stable'), over_seeds(f'{name}_bound', 3),
     over_seeds(f'{name}_safe')]
    for name, label in (('lora', 'LoRA'), ('balanced', 'balanced'),
                        ('reflora', 'RefLoRA'))
  ]  # fmt: skip
  header = ['pair', 'best step size', 'loss there', 'loss falls up to',
            'least bound', 'bound falls up to']  # fmt: skip
  text = results.markdown(header, lines)
  lines = [
    [eta, *(
      f'{np.median(p):.2f} [{p.min():.2f} to {p.max():.2f}]'
      for p in (np.array([r[k][i] for r in rows])
                for k in ('best_power', 'best_power_bound'))
    )]
    for i, eta in enumerate(bound.FIXED_SIZES)
  ]  # fmt: skip
  header = ['step size', 'best power for the loss', 'for the bound']
  return text + '\n\n' + results.markdown(header, lines)


def draw_paper(rows, path):
  canvas, axes = drawing.panels(1, 2, 4.4, 3.2, sharey=True)
  colours = dict(zip(PLAIN, drawing.COLOURS, strict=False))
  styles = {'RefLoRA, real': '--', 'RefLoRA-S': ':'}
  for panel, rate in zip(axes[0], PAPER_RATES, strict=True):
    for row in rows:
      if row['rate'] == rate:
        name, losses = row['method'], np.minimum(row['losses'], 1e30)
        middle = np.exp(np.mean(np.log(losses), axis=0))
        steps = np.arange(len(middle))
        panel.plot(middle, color=colours[name], label=name,
                   linestyle=styles.get(name, '-'))  # fmt: skip
        panel.fill_between(steps, losses.min(0), losses.max(0), alpha=0.15,
                           color=colours[name], linewidth=0)  # fmt: skip
    panel.set(yscale='log', ylim=(1e-3, 1e6), xlabel='step')
    panel.set_title(f'step size {rate}', fontsize=10)
  axes[0, 0].set_ylabel('loss')
  axes[0, 0].legend(fontsize=8, frameon=False)
  drawing.save(canvas, path)


def draw_sweep(rows, path):
  schedules = ('constant', 'cosine')
  canvas, axes = drawing.panels(2, len(PANELS), 3.9, 2.9, sharey=True)
  for line, schedule in zip(axes, schedules, strict=True):
    found = {r['method']: r for r in rows if r['schedule'] == schedule}
    for panel, names in zip(line, PANELS, strict=True):
      shown = [n for n in names if n in found]
      for name, colour in zip(shown, drawing.COLOURS, strict=False):
        row = found[name]
        losses = np.clip(row['losses'], 1e-12, 1e9)
        middle = np.exp(np.mean(np.log(losses), axis=1))
        panel.plot(row['rates'], middle, color=colour, label=name)
        panel.fill_between(row['rates'], losses.min(1), losses.max(1),
                           color=colour, alpha=0.15, linewidth=0)  # fmt: skip
      panel.set(xscale='log', yscale='log', ylim=(1e-10, 1e5))
      panel.set_title(schedule, fontsize=10)
      panel.legend(fontsize=7, frameon=False)
  for panel in axes[-1]:
    panel.set_xlabel('learning rate')
  for panel in axes[:, 0]:
    panel.set_ylabel(f'loss after {STEPS} steps')
  drawing.save(canvas, path)


def draw_bound(curves, kink, path):
  canvas, axes = drawing.panels(1, 2, 4.6, 3.3)
  left, right = axes[0]
  for name, label, colour in zip(
    ('lora', 'balanced', 'reflora'), ('LoRA', 'balanced', 'RefLoRA'),
    drawing.COLOURS, strict=False,
  ):  # fmt: skip
    left.plot(bound.SIZES[1:], curves[name], color=colour, label=label)
    left.plot(bound.SIZES[1:], curves[f'{name}_bound'], color=colour,
              linestyle='--', label=f'{label}, bound')  # fmt: skip
  left.axvline(kink, color=drawing.GREY, linewidth=0.8, linestyle=':')
  left.set(ylim=(0.6, 1.4), xlabel='step size')
  left.set_ylabel('loss after one step / before')
  left.legend(fontsize=7, frameon=False)
  for i, (eta, colour) in enumerate(
    zip(bound.FIXED_SIZES, drawing.COLOURS, strict=False)
  ):
    right.plot(bound.POWERS, curves['powers'][i], color=colour,
               label=f'step size {eta}')  # fmt: skip
    right.plot(bound.POWERS, curves['powers_bound'][i], color=colour,
               linestyle='--')  # fmt: skip
  for x, text in ((0, 'LoRA'), (1, 'balanced')):
    right.axvline(x, color=drawing.GREY, linewidth=0.8, linestyle=':')
    right.text(x, 0.61, f' {text}', fontsize=8, color='#555')
  right.set(ylim=(0.6, 1.4), xlabel='power of the balancing S')
  right.legend(fontsize=7, frameon=False)
  drawing.save(canvas, path)


def load(folder):
  return (
    results.load_rows(folder / f'{part}.jsonl')
    for part in ('paper', 'sweep', 'bound')
  )


def sections(folder):
  paper, sweep, (_, *summaries) = load(folder)
  return {
    'convergence': paper_table(paper),
    'sweep': sweep_table(sweep),
    'bound': bound_table(summaries),
  }


def draw(folder):
  paper, sweep, (curves, first, *_) = load(folder)
  draw_paper(paper, folder / 'convergence.png')
  draw_sweep(sweep, folder / 'sweep.png')
  draw_bound(curves, first['kink'], folder / 'bound.png')


def main(argv=None):
  results.rebuild(__doc__, FOLDER, sections, draw, argv)


if __name__ == '__main__':
  main()
