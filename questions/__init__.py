"""What is asked: StreamGaze's tasks and release, own questions, and the dataset folder that either becomes."""
