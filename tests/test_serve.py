"""The example of a server: examples/serve.py."""

import contextlib
import http.client
import importlib.util
import json
import socket
import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
from conftest import ROOT

NO_IMAGE = "the body is no image that OpenCV reads, or one of too many pixels"


@pytest.fixture(scope="module")
def serve():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**30))  # it sets this only where nobody has
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


@pytest.fixture
def server(serve):
    """A running server of a detector of images of 8 x 8 pixels."""
    server = serve.make_server(fake(serve, (8, 8), takes_sizes=False), "127.0.0.1", 0)
    server.RequestHandlerClass.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def png(height, width):
    return cv2.imencode(".png", np.full((height, width, 3), 100, np.uint8))[1].tobytes()


def post(server, body, **headers):
    """The status and the JSON of a reply."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/", body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())


def test_requests(server):
    """JSON for an image; a status and a reason for anything else, after which the server goes on."""
    assert post(server, b"no image") == (400, {"error": NO_IMAGE})
    assert post(server, b"")[0] == 400
    assert post(server, png(8, 9)) == (422, {"error": "an image of 9x8 pixels; the file has programs for 8x8"})
    status, found = post(server, png(8, 8))
    assert status == 200 and [one["class"] for one in found] == ["b", "a"]


def test_a_small_file_of_a_vast_image_is_refused(server):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 100)), (b"IEND", b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    assert post(server, bomb) == (400, {"error": NO_IMAGE})


@pytest.mark.parametrize("length", ["-1", "", "\xb2", "9" * 5000, "1e3", str(33 * 2**20)])
def test_a_length_that_is_none_or_too_large_is_refused(server, length):
    status, reply = post(server, b"", Content_Length=length)
    assert status == 413 and reply["error"].startswith("state the length of the body")


def test_a_silent_client_keeps_nobody_waiting(server):
    with socket.create_connection(("127.0.0.1", server.server_port)):
        assert post(server, png(8, 8))[0] == 200
