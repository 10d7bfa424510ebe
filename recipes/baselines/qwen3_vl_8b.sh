# Not in the paper: Qwen3-VL (8B), which reads the time of its frames; at most 64, as GazeQwen sees.
accelerate launch eval.py --model Qwen/Qwen3-VL-8B-Instruct --data data/streamgaze \
    --gaze none overlay text --prompt_style streamgaze --snap_s 1 --max_frames 64 \
    --output results/qwen3_vl_8b.json
