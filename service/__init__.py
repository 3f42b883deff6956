import contracts  # noqa: F401  settles how OpenMP threads wait, before XGBoost loads OpenMP
