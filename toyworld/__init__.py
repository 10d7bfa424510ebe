"""A small world in StreamGaze's layout, and a tiny Qwen2.5-VL and Qwen3-VL pretrained on it: GazeQwen offline."""
