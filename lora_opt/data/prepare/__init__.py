"""Prepares data sets from their publishers' files, as TFDS does.

  python -m lora_opt.data.prepare gsm8k --raw grade-school-math --data_dir data

writes data/gsm8k/1.0.0/ in the array_record format, which
`lora_opt.data.sources.Folder` reads without TensorFlow. `recipes` describes
each data set: its files, fields, licence, and where to get it.
"""
