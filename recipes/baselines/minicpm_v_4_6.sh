# Not in the paper, whose MiniCPM-V is an 8B model (README): MiniCPM-V 4.6 (1.3B), 32 frames as in the paper's row.
accelerate launch eval.py --model openbmb/MiniCPM-V-4.6 --data data/streamgaze \
    --gaze none overlay text --prompt_style streamgaze --snap_s 1 --num_frames 32 \
    --output results/minicpm_v_4_6.json
