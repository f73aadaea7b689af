"""The engines that run the stages: threads of this process, or Ray."""
