# Table 1, Qwen2.5-VL (7B): StreamGaze's frame rates by clip length, 0.1 to 1 per second, uncapped up to 42 minutes.
accelerate launch eval.py --model Qwen/Qwen2.5-VL-7B-Instruct --data data/streamgaze \
    --gaze none overlay text --prompt_style streamgaze --scoring generate --max_frames 256 \
    --output results/qwen2_5_vl_7b.json
