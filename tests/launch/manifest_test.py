"""The JobSet that launch/gke.py makes."""

import json
import pathlib

import jsonschema
import pytest
import yaml

from tests.launch.launcher import launch, output

SCHEMA = json.loads(
  pathlib.Path(__file__).with_name('jobset_schema.json').read_text()
)
OPTIONS = {
  'name': 'reversal',
  'image': 'registry/lora_opt:1',
  'accelerator': 'tpu-v5-lite-podslice',
  'topology': '4x4',
  'slices': '2',
  'claim': 'shared',
  'model_dir': '/shared/runs/a',
}
FLAGS = ['--gin_file=configs/runs/finetune.gin', '--gin.X="a" # \'$(b)\'']


def arguments(**changes):
  return [f'--{name}={x}' for name, x in (OPTIONS | changes).items()]


def test_the_manifest_is_a_jobset_of_these_slices():
  manifest = yaml.safe_load(
    output('gke.py', *arguments(), '--dry_run', '--', *FLAGS)
  )
  jsonschema.validate(manifest, SCHEMA)
  assert manifest['metadata']['name'] == 'reversal'
  (slices,) = manifest['spec']['replicatedJobs']
  job = slices['template']['spec']
  sizes = slices['replicas'], job['completions'], job['parallelism']
  assert sizes == (2, 4, 4)
  pod = job['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
  }
  (container,) = pod['containers']
  assert container['image'] == 'registry/lora_opt:1'
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert container['command'] == [
    'bash',
    'launch/worker.sh',
    '--coordinator_address=auto',
    FLAGS[0],
    FLAGS[1].replace('$', '$$'),  # Kubernetes makes one $ of two
  ]


def test_the_schema_refuses_a_misspelt_field():
  manifest = yaml.safe_load(output('gke.py', *arguments(), '--dry_run'))
  manifest['spec']['replicatedJobs'][0]['template']['spec']['paralelism'] = 4
  with pytest.raises(jsonschema.ValidationError, match='paralelism'):
    jsonschema.validate(manifest, SCHEMA)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'name': 'Rev_1'}, 'lower-case'),
    ({'accelerator': 'tpu-v9'}, 'tpu-v5p-slice'),
    ({'topology': '4*4'}, 'not like 4x4'),
    ({'topology': '3x3'}, 'not a multiple'),
    ({'model_dir': 'runs/a'}, 'not a whole path'),
    ({'model_dir': '/runs/a'}, 'not on the volume'),
    ({'model_dir': '/shared/../etc'}, 'without ..'),
    ({'model_dir': '/shared/a\nb: c'}, 'not a whole path'),
    ({'mount': 'shared'}, 'not a whole path'),
    ({'slices': '-3'}, 'from 1 to'),
    ({'slices': '0'}, 'from 1 to'),
    ({'slices': '1e3'}, 'expected a whole number'),
    ({'restarts': '-1'}, 'from 0 to'),
    ({'topology': '99999x99999'}, 'not like 4x4'),
    ({'claim': 'a\nb: c'}, 'not the name of a claim'),
    ({'image': 'x y'}, 'not the name of an image'),
    ({'name': 'a\nb'}, 'lower-case'),
  ],
)
def test_what_kubernetes_would_not_take_is_named(changes, said):
  run = launch('gke.py', *arguments(**changes), '--dry_run')
  assert run.returncode == 2
  assert said in run.stderr


def test_unicode_and_dollars_come_through():
  flag = '--gin.X="é 😀 \u2028"'
  said = output(
    *('gke.py', *arguments(model_dir='/shared/$(HOME)/é'), '--dry_run', '--'),
    flag.replace('\u2028', ''),
  )
  manifest = yaml.safe_load(said)
  pod = manifest['spec']['replicatedJobs'][0]['template']['spec']['template']
  (container,) = pod['spec']['containers']
  assert container['command'][-1] == '--gin.X="é 😀 "'
  assert container['env'][0]['value'] == '/shared/$$(HOME)/é'
