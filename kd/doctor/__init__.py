"""Diagnoses an experiment before it is run: `python -m kd.doctor -n 2 objective=rkl` (docs/doctor.md)."""
