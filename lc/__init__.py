"""Deep Layer Cascade (CVPR 2017), reproduced: model, region convolution, training, evidence."""
import os

# Threads that wait may spin only briefly: beside another busy process, OpenMP's default makes small steps ten times slower
# (results/NOTES.md). Has to be set before torch loads its OpenMP.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
