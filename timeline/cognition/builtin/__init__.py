"""The tools that come with timeline; `timeline.cognition.toolbox` decides which of them are on."""
