"""INT8 after training: `calibrate` makes bundles of it, `report` compares them."""
