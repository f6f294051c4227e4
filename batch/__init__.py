"""Many pictures, drawn by several processes or by a cluster, each of them there once."""
