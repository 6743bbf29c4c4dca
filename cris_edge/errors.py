"""What the runtime refuses, and why. Every message says what was expected and what came."""


class CrisEdgeError(Exception):
    """Anything that CRIS Edge refuses."""


class InputError(CrisEdgeError, ValueError):
    """A photo or a phrase that cannot be used."""


class BundleError(CrisEdgeError):
    """A bundle that is missing, damaged, or does not describe itself."""


class EngineError(CrisEdgeError):
    """An engine that is missing, unsuitable, or failed."""
