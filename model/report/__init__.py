"""One HTML page that opens offline: a run, its clips, a store, a data set, several runs side by side."""
