"""From a question to what the model is given: conditions, the cache of frozen work, batches."""
