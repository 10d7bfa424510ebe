"""Video and gaze as they arrive: fixations so far, sources of both, questions at any moment."""
