# Every target makes and reuses .venv, `test-oldest` .venv-oldest; nothing but Python 3.11, pip, make and git is needed.
PYTHON ?= python3.11
BIN := .venv/bin
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
DEMO := runs/demo
# The oldest transformers that pyproject.toml admits.
OLDEST := 5.17

.PHONY: install demo evidence kitchen app docs test test-oldest test-app quality style

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# The whole chain on the toy world: data, two-stage training, evaluation with controls, reload in new processes, a question.
demo: install
	rm -rf $(DEMO)
	$(BIN)/python -m gazeqwen.toyworld.generate $(DEMO)/world --train 400 --val 40 --test 100 --seed 0 \
		--per_task 2 --most 150 30 60
	$(BIN)/gazeqwen build $(DEMO)/world $(DEMO)/data
	$(LAUNCH) train.py recipes/demo.yaml
	$(LAUNCH) eval.py --model $(DEMO)/best --data $(DEMO)/data --split validation --conditions gaze \
		--batch_size 64 --cache embeddings --cache_dir $(DEMO)/cache --compare $(DEMO)/validation_predictions.jsonl
	$(LAUNCH) eval.py --model $(DEMO)/best --data $(DEMO)/data --split test --conditions gaze none shuffled \
		--batch_size 64 --cache embeddings --cache_dir $(DEMO)/cache --output $(DEMO)/results.json
	$(BIN)/python ask.py --model $(DEMO)/best --video $(DEMO)/world/videos/original_video/toy-test-0048.mp4 \
		--scanpath $(DEMO)/world/metadata/toyworld/toy-test-0048/toy-test-0048_fixation_filtered.csv --time 8 \
		--question "Which object is the user currently gazing at?" --options banana plate apron jar --plot $(DEMO)/ask.png

# Every row of docs/evidence.md, with three seeds; goes on where it was stopped.
evidence: install
	$(BIN)/python -m gazeqwen.toyworld.evidence
	$(BIN)/python -m gazeqwen.toyworld.video_encoder_controls
	$(BIN)/python -m gazeqwen.toyworld.evidence_report

# The same of the kitchen.
kitchen: install
	$(BIN)/python -m gazeqwen.toyworld.evidence --study kitchen
	$(BIN)/python -m gazeqwen.toyworld.video_encoder_controls --study kitchen
	if [ -d runs/kitchen/dinov2-normalized-0 ]; then \
		$(BIN)/python -m gazeqwen.toyworld.video_encoder_controls --study kitchen --row dinov2-normalized; fi
	if [ -d runs/kitchen/dinov2-normalized-then-noise-0 ]; then \
		for row in dinov2-normalized dinov2-normalized-long dinov2-normalized-then-noise; do \
			$(BIN)/python -m gazeqwen.toyworld.video_encoder_controls --study kitchen --row $$row --gaze noise10 || exit 1; done; \
		$(BIN)/python -m gazeqwen.toyworld.residual_places; fi
	for row in normalized-embeddings normalized-embeddings-then-noise; do \
		$(BIN)/python -m gazeqwen.toyworld.video_encoder_controls --study kitchen --row $$row --gaze noise10 || exit 1; done
	$(BIN)/python -m gazeqwen.toyworld.kitchen.difficulty
	$(BIN)/python -m gazeqwen.toyworld.evidence_report

# The page with the toy model, offline.
app: install
	$(BIN)/python app.py

# The documentation's site, in site/.
docs: install
	$(BIN)/mkdocs build --strict

# What pytest makes of the test files, and Python of the package's, is written once and read by every process.
test: install
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The model with the oldest transformers: logits of tests/golden_logits.py, and all that stands on its classes.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile $(foreach name,versions model* positions backbones \
		processing adapters baselines convert* hub resampler toy_* training video vjepa2_1,tests/test_$(name).py)

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --upgrade pip
	.venv-oldest/bin/pip install --quiet --editable ".[dev]" "transformers==$(OLDEST).*"
	touch $@

# The page in headless Chromium. To write the pictures of docs/images anew: make test-app BROWSER_TESTS="--screenshots docs/images"
test-app: install
	command -v chromium && command -v chromedriver || { \
		sudo=$$(test $$(id -u) = 0 || echo sudo); \
		$$sudo apt-get update -qq && $$sudo apt-get install -y -qq chromium chromium-driver; }
	$(BIN)/pip install --quiet --editable ".[app,browser]"
	$(BIN)/python -m pytest tests/browser $(BROWSER_TESTS)

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .venv/types && ln -sfn ../.. .venv/types/gazeqwen
	$(BIN)/mypy

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
