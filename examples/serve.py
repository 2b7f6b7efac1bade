"""Serves an exported detector over HTTP: an image in, JSON out. It needs jax, flatbuffers, numpy and OpenCV only.

    python examples/serve.py detector.zip --port 8000
    curl --data-binary @photo.jpg http://127.0.0.1:8000

``--mode export --any_size`` makes a file that serves images of any size up to its own, see docs/export.md. This
is an example: it detects in one image after the other, and has neither encryption nor authentication.
"""

import argparse
import contextlib
import io
import json
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A small file may hold any number of pixels. OpenCV reads the variable when it is imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**25))

import cv2
import jax
import jax.export
import numpy as np

LARGEST_BODY = 32 * 2**20  # bytes


class Refused(Exception):  # noqa: N818
    """A request that cannot be answered: an HTTP status and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Detector:
    """The programs of an exported file, compiled when they are made."""

    def __init__(self, path: str, score_threshold: float):
        with zipfile.ZipFile(path) as file:
            self.metadata = json.loads(file.read("metadata.json"))
            assert self.metadata["format"] == 1, "this file was written by a newer version"
            self.weights = jax.device_put(dict(np.load(io.BytesIO(file.read("weights.npz")))))
            self.programs = {
                (one["height"], one["width"]): jax.jit(jax.export.deserialize(bytearray(file.read(one["file"]))).call)
                for one in self.metadata["programs"]
            }
        self.score_threshold = score_threshold
        for height, width in self.programs:
            self.detect(np.zeros((height, width, 3), np.uint8))

    def detect(self, image: np.ndarray) -> list[dict]:
        """The detections in an image (H, W, 3) uint8, BGR, best first."""
        height, width = image.shape[:2]
        shape = self.shape_for(height, width)
        canvas = np.zeros((self.metadata["batch"], *shape, 3), np.uint8)
        canvas[0, :height, :width] = image[..., ::-1] if self.metadata["channels"] == "RGB" else image
        sizes = np.zeros((len(canvas), 2), np.int32)  # other rows of the batch have no image
        sizes[0] = height, width
        arguments = (canvas, sizes) if self.metadata["takes_sizes"] else (canvas,)
        found = jax.device_get(self.programs[shape](self.weights, *arguments))
        rows = zip(found["boxes"][0], found["scores"][0], found["classes"][0], strict=True)
        return [
            {"box": box.tolist(), "score": float(score), "class": self.metadata["class_names"][number]}
            for box, score, number in rows
            if number > 0 and score > self.score_threshold
        ]

    def shape_for(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the program for an image: the smallest, preferably for images as wide or as high."""
        exact = not self.metadata["takes_sizes"]
        holding = [
            (h, w) for h, w in self.programs if ((h, w) == (height, width) if exact else h >= height and w >= width)
        ]
        if not holding:
            known = ", ".join(f"{w}x{h}" for h, w in self.programs)
            raise Refused(422, f"an image of {width}x{height} pixels; the file has programs for {known}")
        other_way = {(h, w): (h > w and height < width) or (h < w and height > width) for h, w in holding}
        return min(holding, key=lambda shape: (other_way[shape], shape[0] * shape[1]))


def answer(detector: Detector, body: bytes) -> list[dict]:
    """The detections in an image file; raises `Refused` if it is none, or has a size without a program."""
    image = None
    with contextlib.suppress(cv2.error):
        image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise Refused(400, "the body is no image that OpenCV reads, or one of too many pixels")
    return detector.detect(image)


def make_server(detector: Detector, host: str, port: int) -> ThreadingHTTPServer:
    """A server that answers each request in a thread of its own."""
    free = threading.Lock()  # a slow client must not keep others waiting, but memory is for one image

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds that a client may take for its request

        def do_POST(self):
            try:
                length = self.headers.get("Content-Length", "")
                # Python reads no number of thousands of digits, and calls a raised 2 a digit.
                if not (length.isascii() and length.isdigit() and len(length) < 20) or int(length) > LARGEST_BODY:
                    raise Refused(413, f"state the length of the body, at most {LARGEST_BODY} bytes")
                body = self.rfile.read(int(length))
                with free:
                    found = answer(detector, body)
                self.reply(200, found)
            except Refused as refused:
                self.reply(refused.status, {"error": str(refused)})

        def reply(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, port), Handler)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--score_threshold", type=float, default=0.5)
    given = parser.parse_args()
    server = make_server(Detector(given.file, given.score_threshold), given.host, given.port)
    print(f"serving {given.file} on http://{given.host}:{server.server_port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
