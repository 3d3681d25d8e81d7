"""Data: pictures with labels, splits into query and gallery, and data sets by name."""
