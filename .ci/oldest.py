"""Print pip constraints that hold the dependencies, and those of the extra cli, at their oldest allowed release."""

import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["cli"]]:
    name, _, oldest = requirement.partition(">=")
    print(f"{name}=={oldest}")
