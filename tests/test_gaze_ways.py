"""The benchmark of what each way to show gaze costs measures what it says: benchmarks/bench_gaze_ways.py."""

import torch

from gazeqwen.benchmarks.bench_gaze_ways import KNOWN, NEW, WAYS, cases, tokens_in_words
from gazeqwen.benchmarks.bench_model import build


@torch.no_grad()
def test_a_known_video_answers_as_a_new_one_and_gaze_is_heard():
    torch.manual_seed(0)
    kind = ("tiny", "cpu", torch.float32)
    models = {way: build(*kind, **adapter) for way, adapter in WAYS.items() if adapter is not None}
    models |= {way: models["GazeQwen"] for way in WAYS if way not in models}
    measured, words = cases(models, *kind)
    assert list(measured) == list(WAYS) and words > 20
    for way, by_when in measured.items():
        logits = {when: model(**case, logits_to_keep=1).logits for when, (model, case) in by_when.items()}
        assert torch.allclose(logits[NEW], logits[KNOWN], atol=1e-4), way
        model, case = by_when[KNOWN]
        assert ("pixel_values_videos" in case) == (way == "a mark drawn on the frames"), way
        assert "video_encoder_pixel_values" not in case, way
        without = {name: value for name, value in case.items() if name not in ("scanpaths", "step_spans_s")}
        heard = not torch.allclose(model(**without, logits_to_keep=1).logits, logits[KNOWN], atol=1e-4)
        assert heard == (WAYS[way] is not None), way
    longer, without = (measured[way][NEW][1]["input_ids"].shape[1] for way in ("places in words", "no gaze"))
    assert longer == without + words


def test_words_are_counted_as_the_tokenizer_would():
    one = tokens_in_words(torch.tensor([[0.25, 0.5, 1.0, 1.0]]))
    two = tokens_in_words(torch.tensor([[0.25, 0.5, 1.0, 1.0], [0.75, 0.5, 3.0, 1.0]]))
    assert 15 <= two - one <= 30
