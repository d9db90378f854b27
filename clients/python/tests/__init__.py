import faulthandler
import os

# What hangs shows where, and fails.
faulthandler.dump_traceback_later(1200, exit=True)

# The servers are on this machine: whatever proxy there is, it is not for them.
os.environ["no_proxy"] = "*"
