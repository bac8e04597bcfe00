"""Privacy-blind torch: feature maps, generators, classifiers, and the training loop of a mean-embedding generator."""
