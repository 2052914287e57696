"""Run molecular dynamics: a structure in, a trajectory, a log and a plot out."""
