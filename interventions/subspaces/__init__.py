"""Parts of a vector: subspaces that are given or learned, and features of sparse autoencoders."""
