"""Photos with instance masks turned into referring samples: a photo, a phrase, a mask."""
