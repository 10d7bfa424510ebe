"""GazeQwen: Qwen2.5-VL that knows where the wearer looked."""
