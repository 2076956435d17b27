"""What several studies share: data, the training loop, a table of runs that can be resumed, paired differences."""
