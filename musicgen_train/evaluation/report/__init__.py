"""`report.html`: one file to look at and listen to, without scripts and without anything fetched."""
