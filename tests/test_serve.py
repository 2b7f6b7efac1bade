"""The example of a server: examples/serve.py."""

import importlib.util
import json
import threading
import urllib.error
import urllib.request
from http.server import HTTPServer

import cv2
import numpy as np
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def serve():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake(serve, *shapes, takes_sizes, channels="BGR", batch=1):
    """A detector whose programs return their input: the first pixel as score, the size as a box."""

    def program(weights, images, sizes=None):
        size = images.shape[1:3] if sizes is None else sizes[0]
        box = np.array([[[0, 0, size[1] - 1, size[0] - 1]] * 3] * batch, np.float32)
        scores = np.tile(np.array([0.9, 0.6, 0.1], np.float32), (batch, 1)) * images[0, 0, 0, 0] / 100
        return {"boxes": box, "scores": scores, "classes": np.array([[2, 1, 0]] * batch)}

    detector = serve.Detector.__new__(serve.Detector)
    detector.metadata = {
        "class_names": ["background", "a", "b"],
        "takes_sizes": takes_sizes,
        "channels": channels,
        "batch": batch,
    }
    detector.programs, detector.weights, detector.score_threshold = dict.fromkeys(shapes, program), {}, 0.5
    return detector


@pytest.mark.parametrize(("channels", "scores"), [("BGR", [0.9, 0.6]), ("RGB", [1.8, 1.2])])
def test_detections(serve, channels, scores):
    image = np.full((3, 5, 3), (100, 150, 200), np.uint8)
    found = fake(serve, (4, 8), takes_sizes=True, channels=channels, batch=2).detect(image)
    assert [one["class"] for one in found] == ["b", "a"]
    assert [one["box"] for one in found] == [[0, 0, 4, 2]] * 2
    np.testing.assert_allclose([one["score"] for one in found], scores, rtol=1e-6)


def test_the_program_for_an_image(serve):
    shapes = (100, 200), (200, 100), (300, 300), (80, 90)
    any_size = fake(serve, *shapes, takes_sizes=True)
    assert any_size.shape_for(80, 90) == (80, 90)
    assert any_size.shape_for(60, 100) == (100, 200)
    assert any_size.shape_for(100, 60) == (200, 100)
    assert any_size.shape_for(90, 80) == (200, 100)
    assert any_size.shape_for(150, 220) == (300, 300)
    one_size = fake(serve, *shapes, takes_sizes=False)
    assert one_size.shape_for(200, 100) == (200, 100)
    for detector, size in ((any_size, (301, 1)), (one_size, (90, 80))):
        with pytest.raises(serve.Refused, match="pixels; the file has programs for 200x100"):
            detector.shape_for(*size)


def test_requests(serve):
    """JSON for an image; a status and a reason for anything else, after which the server goes on."""
    server = HTTPServer(("127.0.0.1", 0), serve.handler(fake(serve, (8, 8), takes_sizes=False)))
    server.RequestHandlerClass.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(body):
        try:
            with opener.open(f"http://127.0.0.1:{server.server_port}", data=body, timeout=10) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["error"]

    def png(height, width):
        return cv2.imencode(".png", np.full((height, width, 3), 100, np.uint8))[1].tobytes()

    try:
        assert post(b"no image") == (400, "the body is no image that OpenCV reads")
        assert post(b"")[0] == 400
        assert post(png(8, 9)) == (422, "an image of 9x8 pixels; the file has programs for 8x8")
        status, found = post(png(8, 8))
        assert status == 200 and [one["class"] for one in found] == ["b", "a"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
