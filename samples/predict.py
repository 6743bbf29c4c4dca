"""A photo and phrases in, masks out: the shortest program that does the whole job.

Run: python samples/predict.py [PHOTO [PHRASE ...]]
"""

import sys
from pathlib import Path

import cv2

from cris_edge import Segmenter, draw

photo = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "photos/000000000599.jpg"
phrases = sys.argv[2:] or ["tabby cat", "white remote control"]

segmenter = Segmenter()
results = segmenter.predict(photo, phrases)
for result in results:
    print(f"{result.phrase}: score {result.score:.2f}, box {result.box}")
if not cv2.imwrite("predict.png", draw(photo, results)):
    sys.exit("predict.png: cannot be written here")
