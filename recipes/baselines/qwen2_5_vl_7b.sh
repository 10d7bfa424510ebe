# Table 1, Qwen2.5-VL (7B): StreamGaze's frame rates by clip length, at most 64 frames, as GazeQwen sees.
accelerate launch eval.py --model Qwen/Qwen2.5-VL-7B-Instruct --data data/streamgaze \
    --gaze none overlay text --prompt_style streamgaze --snap_s 1 --max_frames 64 \
    --output results/qwen2_5_vl_7b.json
