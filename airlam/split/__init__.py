"""The shared core of training and serving: who runs which module of a LAM, over which link, at what cost."""
