"""Cards for adapters and datasets, and the page as a Space."""
