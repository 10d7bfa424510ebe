"""A small world in StreamGaze's release layout, and a tiny Qwen2.5-VL pretrained on it: GazeQwen offline."""
