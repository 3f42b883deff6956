import os

# Read once, when OpenMP is loaded, which scikit-learn does as well as XGBoost,
# both with the same library: whoever imports either comes by here first. Threads
# that spin while they wait make training on a shared machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
