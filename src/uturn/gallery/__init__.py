"""Changed gallery pictures: raised or lowered for many queries at once, taken into the index again,
and what everybody finds then."""

from uturn.gallery.plan import GalleryPlan
from uturn.gallery.run import run

__all__ = ["GalleryPlan", "run"]
