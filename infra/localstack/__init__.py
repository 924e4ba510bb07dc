"""AWS on one machine: the stack that `make package` makes, deployed into an AWS that is none."""
