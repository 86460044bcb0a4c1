"""Trackers report a run to a service, beside MODEL_DIR: one class per service.

`--gin_file=configs/trackers/wandb.gin` chooses one; see docs/trackers.md.
Any object that implements `Tracker` can be used as a tracker of your own.
"""

from lora_opt.training.trackers.mlflow import Mlflow
from lora_opt.training.trackers.tracker import Begun, Row, Run, Tracker
from lora_opt.training.trackers.trackio import Trackio
from lora_opt.training.trackers.wandb import Wandb

__all__ = ['Begun', 'Mlflow', 'Row', 'Run', 'Tracker', 'Trackio', 'Wandb']
