import os

# The servers are on this machine: whatever proxy there is, it is not for them.
os.environ["no_proxy"] = "*"
