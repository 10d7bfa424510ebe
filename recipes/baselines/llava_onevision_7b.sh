# Not in the paper: LLaVA-OneVision (7B), 32 frames as it was trained with (GazeQwen: at most 64).
accelerate launch eval.py --model llava-hf/llava-onevision-qwen2-7b-ov-hf --data data/streamgaze \
    --gaze none overlay text --prompt_style streamgaze --snap_s 1 --num_frames 32 \
    --output results/llava_onevision_7b.json
