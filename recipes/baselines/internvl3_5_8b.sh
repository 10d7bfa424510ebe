# Table 1, InternVL3.5 (8B): at most 64 frames, as GazeQwen sees; one is 256 tokens: 16,400 of 40,960.
accelerate launch eval.py --model OpenGVLab/InternVL3_5-8B-HF --data data/streamgaze \
    --gaze none overlay text --prompt_style streamgaze --snap_s 1 --max_frames 64 \
    --output results/internvl3_5_8b.json
