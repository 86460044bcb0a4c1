"""Places in buckets of Google Cloud Storage and S3: gs:// and s3://.

A path in a bucket is an `etils.epath.Path`, which reads, lists and removes as a
`pathlib.Path` does; fsspec, with gcsfs or s3fs, does the work. What an object
store does not have is made up for:

- an object appears whole, or not at all, so a file is written on a local disk
  first and then put (`lora_opt.writing.draft`);
- nothing can be appended to: a file that grows is put anew (`outbox.Outbox`);
- libraries that want a local file get a copy (`lora_opt.reading.copies`).
"""
