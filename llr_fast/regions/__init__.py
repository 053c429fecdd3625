"""Linear regions beyond that of one point: counted, along segments, on planes, near points."""
