"""Where images and labels come from: one file a source, named as in YAML, with one function of that name."""
