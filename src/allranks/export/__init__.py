"""Turn a checkpoint into what every Hugging Face tool reads. Import `allranks.export.export`."""
