"""Plots and the HTML report of a study, from run folders alone."""
