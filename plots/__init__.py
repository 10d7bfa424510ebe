"""Pictures: scanpaths on frames, curves, recordings."""
