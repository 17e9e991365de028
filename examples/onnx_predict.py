"""Name opaque 8-bit pictures without torch: python onnx_predict.py model.onnx FILES"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
model = json.loads(session.get_modelmeta().custom_metadata_map["handful"])
wanted = model["preparation"]
size, mode = wanted["size"], "L" if wanted["channels"] == 1 else "RGB"
for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert(mode)
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    ring = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    black = np.median(pixels) + np.median(ring) == 0 and pixels.max() >= 128  # as MNIST's are
    if wanted["kind"] == "digits" and not (black and image.size == (size, size)):
        sys.exit(f"{path}: make it {size} × {size} first, {wanted['meaning']}")
    if wanted["kind"] == "crop":
        image = ImageOps.fit(image, (min(image.size),) * 2)
    image = ImageOps.contain(image, (size, size))
    frame = Image.new(mode, (size, size), tuple(np.rint(np.median(ring, 0)).astype(int).tolist()))
    frame.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    images = np.asarray(frame).reshape(1, size, size, -1).transpose(0, 3, 1, 2)
    probabilities, _h = session.run(None, {"images": images})
    best = probabilities[0].argmax()
    print(path, model["class_names"][best], f"{probabilities[0, best]:.4f}", sep="\t")
