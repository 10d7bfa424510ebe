"""The server of docs/guides answers many requests at once as it answers each alone."""

import http.client
import json
import random
import runpy
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import ROOT

from gazeqwen.toyworld.examples import toy_examples
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.utils.adapters import load_model, load_processor


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return toy_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def server(examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for example in examples:
        shutil.copy(example.video, folder)
        shutil.copy(example.table, folder)
    model, processor = load_model(ADAPTER_DIR), load_processor(ADAPTER_DIR)
    processor.num_frames = 2  # a sixth of what it was trained with: this is about threads
    server = runpy.run_path(str(ROOT / "docs" / "guides" / "server.py"))["Server"](
        ("127.0.0.1", 0), model, processor, folder
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def post(server, request) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(*server.server_address, timeout=300)
    connection.request("POST", "/", request if isinstance(request, bytes) else json.dumps(request))
    response = connection.getresponse()
    status, answer = response.status, json.loads(response.read())
    connection.close()
    return status, answer


def mixed_requests(examples) -> list:
    """With gaze and without, options and none, rows of a scanpath, other clips, and what is no request."""
    requests: list = []
    for example in examples:
        request = {"video": example.video.name, "scanpath": example.table.name, "time_s": example.time_s}
        request |= {"question": example.question, "options": list(example.options), "snap_s": example.snap_s}
        requests += [request, request | {"scanpath": None}]
    first = requests[0]
    requests += [first | {"scanpath": [[0.5, 0.5, 3.0, 1.0]]}, first | {"options": [], "max_new_tokens": 4}]
    requests += [first | {"time_s": 5.0, "start_s": 1.0}, first | {"scanpath": None, "options": ["jar", "lid"]}]
    requests += [first | {"time_s": 9000}, first | {"video": "../secret.mp4"}, first | {"options": "ab" * 9}]
    return [*requests, {}, [], b"no JSON", first | {"scanpath": "../x.csv"}, first | {"video": None}]


def test_200_mixed_requests_in_parallel_are_answered_as_one_by_one(server, examples):
    kinds = mixed_requests(examples)
    alone = [post(server, request) for request in kinds]
    assert {status for status, _ in alone} == {200, 400}
    assert [status for status, _ in alone].count(200) == 2 * len(examples) + 4
    assert len({json.dumps(answer) for _, answer in alone}) > len(kinds) / 2  # they differ
    order = [number % len(kinds) for number in range(200)]
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda number: post(server, kinds[number]), order))
    assert together == [alone[number] for number in order]
