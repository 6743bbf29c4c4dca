"""Small models of large ones: `distill` teaches students, `calibrate` makes INT8 bundles."""

# Before onnxruntime and openvino, which it keeps from reporting.
import cris_edge  # noqa: F401
