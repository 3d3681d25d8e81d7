"""Networks in plain torch: normalised pictures in, raw features out; no pixels, no files."""
