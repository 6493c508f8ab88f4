"""lmp_plotstats: pictures of what runs recorded."""
