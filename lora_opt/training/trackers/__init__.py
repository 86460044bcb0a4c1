"""Trackers, which follow a run beside MODEL_DIR: a class for each service.

`--gin_file=configs/trackers/wandb.gin` chooses one, docs/trackers.md says more.
A tracker of your own is any object with what `Tracker` asks for.
"""

from lora_opt.training.trackers.mlflow import Mlflow
from lora_opt.training.trackers.tracker import Begun, Row, Run, Tracker
from lora_opt.training.trackers.trackio import Trackio
from lora_opt.training.trackers.wandb import Wandb

__all__ = ['Begun', 'Mlflow', 'Row', 'Run', 'Tracker', 'Trackio', 'Wandb']
