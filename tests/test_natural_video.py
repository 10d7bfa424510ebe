"""The page on natural video holds the committed result; places are found again where features say so."""

import json

import torch
from torch.nn import functional as F

from gazeqwen.benchmarks import natural_video
from gazeqwen.utils.tables import fill


def test_the_page_holds_the_committed_result():
    page, result = natural_video.DOCUMENT.read_text(), json.loads(natural_video.OUTPUT.read_text())
    assert fill(page, {"natural-video": natural_video.table(result)}) == page


def test_places_that_stay_are_found_again_and_noise_is_not():
    torch.manual_seed(0)
    still = torch.randn(1, 32 * 32, 24) + 0.3 * torch.randn(natural_video.FRAMES, 32 * 32, 24)
    stays = natural_video.measure(F.normalize(still, dim=-1))
    assert min(stays["found"].values()) > 0.95 and stays["similarity"]["same place"] > 0.8
    noise = natural_video.measure(F.normalize(torch.randn_like(still), dim=-1))
    assert max(noise["found"].values()) < 0.05 and abs(noise["similarity"]["same place"]) < 0.05
    assert abs(noise["found"]["0.2 s"] - noise["chance"]) < 0.02
