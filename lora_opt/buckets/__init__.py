"""Support for buckets of Google Cloud Storage and S3: gs:// and s3://.

A path in a bucket is an `etils.epath.Path`, which reads, lists and removes like
a `pathlib.Path`; fsspec does the work, with gcsfs or s3fs. What object stores
lack is worked around:

- An object appears whole or not at all, so a file is first written to a local
  disk and then uploaded (`lora_opt.writing.draft`).
- Nothing can be appended to an object, so a file that grows is uploaded again
  (`outbox.Outbox`).
- Libraries that need a local file get a copy (`lora_opt.reading.copies`).
"""
