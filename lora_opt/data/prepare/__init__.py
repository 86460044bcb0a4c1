"""Prepares data sets from the files of their publishers, as TFDS does.

  python -m lora_opt.data.prepare gsm8k --raw grade-school-math --data_dir data

writes data/gsm8k/1.0.0/ in the array_record format, which
`lora_opt.data.sources.Folder` reads without TensorFlow. What is known of each
set (files, fields, licence, where to get it) stands in `recipes`.
"""
