"""From a checkpoint to bundles that the runtime runs."""

# Before onnxruntime and openvino, which it keeps from reporting.
import cris_edge  # noqa: F401
