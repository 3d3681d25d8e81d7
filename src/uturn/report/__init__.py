"""Reports: pages and tables from a run folder alone, without torch."""
