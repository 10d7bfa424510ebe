"""Video and gaze as they arrive: fixations so far, sources of both, questions at any moment."""

# Of the grid, and of the video encoder in temporal steps, for adapters that were trained on whole clips.
FPS, WINDOW = 1.0, 4

# By which visual tokens stay where there is a budget.
POLICIES = ("recent", "gaze", "taper")
