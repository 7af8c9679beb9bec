"""Preference rounds: sampling, ranking, DPO and PCPO, gates, probe."""
