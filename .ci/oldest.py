"""Print pip constraints that hold the dependencies, and those of some extras, at their oldest allowed release."""

import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
# The SDK is for tests alone, but must fit the oldest API.
sdk = [requirement for requirement in extras["test"] if requirement.startswith("opentelemetry-sdk")]
for requirement in [*project["dependencies"], *extras["cli"], *extras["prometheus"], *extras["otel"], *sdk]:
    name, _, oldest = requirement.partition(">=")
    print(f"{name}=={oldest}")
