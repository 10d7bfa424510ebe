# Not in the paper: Qwen3-VL (8B), which reads the time of its frames.
accelerate launch eval.py --model Qwen/Qwen3-VL-8B-Instruct --data data/streamgaze \
    --gaze none overlay text --prompt_style streamgaze --scoring generate --max_frames 256 \
    --output results/qwen3_vl_8b.json
