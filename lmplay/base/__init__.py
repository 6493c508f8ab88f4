"""The contract: what an experiment sees of lmplay. See base_model.py and runner_list.py."""
