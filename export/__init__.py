"""From a checkpoint to bundles that the runtime runs."""
