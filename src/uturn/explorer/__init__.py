"""The explorer: an attack to watch and a run folder to leaf through, for people in a browser.

`studio`, `climb`, `card` and `runs` compute and know of no browser; `draw` makes HTML of what they
say, `page` puts it on a page and `serve` serves that. Only the last two know Gradio, and import it
when they are called.
"""

VICTIM, DATA = "glyph_net", "glyphs"
"""What is shown where nothing else is asked for: both are there without a download."""
