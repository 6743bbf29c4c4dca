"""Small models of large ones: `distill` teaches students, `calibrate` makes INT8 bundles."""
