"""Suggest points and stop trials early: samplers, pruners, replay of a study, importance of settings, expected mIoU."""
