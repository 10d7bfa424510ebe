# Table 1, InternVL3.5 (8B): StreamGaze's frame rates; a frame is 256 tokens, so 128 frames fill 33,000 of 40,960.
accelerate launch eval.py --model OpenGVLab/InternVL3_5-8B-HF --data data/streamgaze \
    --gaze none overlay text --prompt_style streamgaze --scoring generate --max_frames 128 \
    --output results/internvl3_5_8b.json
