"""One question about one recording, with gaze and without."""
